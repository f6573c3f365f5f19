//! The commands as people and scripts use them: what they print, and what they say when something is wrong.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use faasnet::demo::verify::digest_of_reader;
use faasnet::registry::RegistryOptions;
use serde_json::Value;

use crate::common::{Lab, MIB, error_of, faasnet, noise, run};

/// Arguments that reach the lab's controller.
fn at<'a>(url: &'a str, secret: &'a str, arguments: &[&'a str]) -> Vec<&'a str> {
    [&["--controller", url, "--secret-file", secret], arguments].concat()
}

fn text(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&text(&[arguments, &["--json"]].concat())).unwrap()
}

/// Catches any command of the usual day that stops working: register, provision, look, pull, release, remove.
#[tokio::test(flavor = "multi_thread")]
async fn a_day_with_the_command_line() {
    let layers = vec![noise(1, 5 * MIB), noise(2, 70_000)];
    let lab = Lab::start(3, &[("app", layers)], RegistryOptions::default()).await;
    let (url, secret) = (lab.cluster.url(), lab.cluster.secret_file().display().to_string());
    let reference = lab.reference("app");
    let admin = format!("http://{}", lab.cluster.agents[2].address("admin"));
    let out = lab.dir.path().join("pulled");
    let out_text = out.display().to_string();
    tokio::task::spawn_blocking(move || {
        let run = |arguments: &[&str]| text(&at(&url, &secret, arguments));
        let json = |arguments: &[&str]| json(&at(&url, &secret, arguments));
        assert!(run(&["function", "ls"]).contains("no functions yet"));
        // A refusal must not outlive its reason.
        let pull = ["pull", "app", "--agent", &admin, "--out", &out_text];
        let refused = error_of(&at(&url, &secret, &pull));
        assert!(refused.contains("no function"), "{refused}");
        let created = json(&["function", "create", "app", "--image", &reference, "--plain-http"]);
        let other = ["function", "create", "app", "--image", &reference, "--plain-http", "--policy", "complete"];
        let other = error_of(&at(&url, &secret, &other));
        assert!(other.contains("exists with policy twin"), "{other}");
        assert_eq!((&created["policy"], &created["blobs"]), (&"twin".into(), &3.into()));
        assert!(run(&["function", "ls"]).contains(&reference));
        let lines = run(&["provision", "app", "--nodes", "n1,n2"]);
        assert!(lines.contains("n1  complete") && lines.ends_with("2 of 2 nodes hold app\n"), "{lines}");
        assert_eq!(json(&["provision", "app", "--count", "2"])["complete"], 2);
        let tree = run(&["tree", "app"]);
        assert!(tree.contains("stripe 1\norigin\n└── n") && tree.contains("n2  complete"), "{tree}");
        assert_eq!(json(&["tree", "app"])["trees"][1]["edges"].as_array().unwrap().len(), 2);
        let nodes = run(&["nodes"]);
        assert!(nodes.lines().count() == 4 && nodes.contains("127.77.0.4:") && nodes.contains("live"), "{nodes}");
        assert_eq!(json(&["nodes"]).as_array().unwrap().len(), 3);
        let table = run(&["explain", "app"]);
        assert!(table.contains("n2") && table.contains("complete"), "{table}");
        let story = json(&["explain", &reference, "--node", "n2"]);
        assert!(story["story"]["first_block_seconds"].as_f64() > Some(0.0), "{story}");
        assert!(story["story"]["blocks_verified"].as_u64() >= Some(20), "{story}");
        let why = |row: &Value| row["why"].as_str().unwrap_or_default().to_owned();
        let whys: Vec<String> = story["served_by"].as_array().unwrap().iter().map(why).collect();
        assert!(whys.iter().any(|why| why == "root of this stripe" || why == "planned parent"), "{whys:?}");
        // n3 does not hold it yet: pulling makes it join.
        let pulled = json(&pull);
        assert_eq!(pulled["bytes"], created["image_bytes"]);
        assert_eq!(json(&["tree", "app"])["nodes"].as_array().unwrap().len(), 3);
        assert_eq!(json(&["release", "app", "--nodes", "n1"])["released"], 1);
        assert!(run(&["release", "app"]).starts_with("released 2 nodes"));
        assert!(run(&["function", "rm", "app"]).contains("removed app"));
        assert_eq!(json(&["function", "ls"]), Value::Array(Vec::new()));
    })
    .await
    .unwrap();
    for blob in std::fs::read_dir(out.join("blobs/sha256")).unwrap().flatten() {
        let digest = digest_of_reader(std::fs::File::open(blob.path()).unwrap()).unwrap();
        assert_eq!(digest, format!("sha256:{}", blob.file_name().to_str().unwrap()));
    }
    assert!(out.join("oci-layout").is_file() && out.join("index.json").is_file());
}

/// Catches errors that do not say what is wrong and what to do next.
#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_explained() {
    let lab = Lab::start(1, &[("app", vec![vec![1]])], RegistryOptions::default()).await;
    let (url, secret) = (lab.cluster.url(), lab.cluster.secret_file().display().to_string());
    let wrong = lab.dir.path().join("wrong");
    std::fs::write(&wrong, "another secret of some length").unwrap();
    let wrong = wrong.display().to_string();
    let http = lab.cluster.http_url();
    tokio::task::spawn_blocking(move || {
        let error = |arguments: &[&str]| error_of(&at(&url, &secret, arguments));
        assert!(error(&["tree", "ghost"]).contains("ghost"));
        assert!(error(&["provision", "ghost", "--count", "1"]).contains("ghost"));
        assert!(error(&["function", "rm", "ghost"]).contains("ghost"));
        let refused = error(&["function", "create", "f", "--image", "127.0.0.1:1/x:1", "--plain-http"]);
        assert!(refused.contains("127.0.0.1:1"), "{refused}");
        let error = error_of(&at(&url, &wrong, &["provision", "app", "--count", "1"]));
        assert!(error.contains("secret"), "{error}");
        let error = error_of(&["nodes", "--controller", "http://127.0.0.1:1"]);
        assert!(error.contains("127.0.0.1:1") && error.contains("faasnet controller"), "{error}");
        assert!(error_of(&["nodes", "--controller", &http]).contains("7401"), "{http}");
        let error = error_of(&["pull", "f", "--out", "/tmp/never", "--agent", "http://127.0.0.1:1"]);
        assert!(error.contains("faasnet agent"), "{error}");
    })
    .await
    .unwrap();
}

/// Catches daemons that start although they cannot work, or fail without a reason.
#[test]
fn daemons_say_why_they_do_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let secret = path("secret");
    std::fs::write(&secret, "0123456789abcdef").unwrap();
    // Else there is a warning before the error.
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let state = path("state");
    let controller = |arguments: &[&str]| {
        error_of(&[&["controller", "--state-dir", &state, "--secret-file", &secret], arguments].concat())
    };
    assert!(controller(&["--listen", &taken]).contains(&taken));
    assert!(error_of(&["controller", "--state-dir", &state]).contains("secret"));
    std::fs::write(path("file"), "").unwrap();
    let (in_file, store) = (path("file/store"), path("store"));
    let agent = |arguments: &[&str]| {
        let common = ["agent", "--secret-file", &secret, "--listen", "127.77.0.99:0"];
        error_of(&[&common, arguments].concat())
    };
    let unwritable = agent(&["--store-dir", &in_file, "--admin", "127.0.0.1:0"]);
    assert!(unwritable.contains(&in_file), "{unwritable}");
    assert!(agent(&["--store-dir", &store, "--admin", &taken]).contains(&taken));
    assert!(agent(&["--store-dir", &store, "--admin", "0.0.0.0:0"]).contains("loopback"));
    let config = path("agent.toml");
    std::fs::write(&config, "nmae = 'x'").unwrap();
    assert!(agent(&["--config", &config]).contains("line 1: nmae"));
}

/// Catches a precedence other than flag, environment, file, default, and a secret that is printed.
#[test]
fn print_config_shows_what_would_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    std::fs::write(
        &config,
        "name = 'file'\nsilence_ms = 300\nguest_ms = 1000\ncluster_secret = 'not to be shown at all'",
    )
    .unwrap();
    let arguments = ["agent", "--config", config.to_str().unwrap(), "--print-config", "--guest-ms", "3000"];
    let output = faasnet(&arguments)
        .env("FAASNET_AGENT_NAME", "variable")
        .env("FAASNET_AGENT_GUEST_MS", "2000")
        .output()
        .unwrap();
    let printed: toml::Table = String::from_utf8(output.stdout).unwrap().parse().unwrap();
    assert_eq!(printed["name"].as_str(), Some("variable"));
    assert_eq!(printed["silence_ms"].as_integer(), Some(300));
    assert_eq!(printed["guest_ms"].as_integer(), Some(3000));
    assert_eq!(printed["waiting_every_ms"].as_integer(), Some(50));
    assert!(!printed.to_string().contains("not to be shown"));
    let json = faasnet(&["agent", "--print-config", "--json"]).env("FAASNET_LOG", "").output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(json["store_quota_bytes"].is_null() && json["silence_ms"].is_u64(), "{json}");
    let output =
        faasnet(&["controller", "--print-config"]).env("FAASNET_SECRET", "not to be shown at all").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\n# tls_client_ca =  (default: none)"), "{text}");
    assert!(text.contains("heartbeat_ms = 500") && !text.contains("not to be shown"), "{text}");
}

/// Catches daemons that do not stop on SIGTERM or SIGINT, or stop with an error.
#[test]
fn signals_stop_daemons_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("secret"), "0123456789abcdef").unwrap();
    let (secret, state, store) = (path("secret"), path("state"), path("store"));
    let layout = crate::common::layout(dir.path(), "app", &[vec![1]]).display().to_string();
    let controller = ["controller", "--secret-file", &secret, "--state-dir", &state, "--listen", "127.0.0.1:0"];
    let agent_at = ["--listen", "127.77.0.98:0", "--admin", "127.0.0.1:0", "--controller", "http://127.0.0.1:1"];
    let agent = [&["agent", "--secret-file", &secret, "--store-dir", &store][..], &agent_at].concat();
    let registry = ["registry", &layout, "--listen", "127.0.0.1:0"];
    for (arguments, signal) in
        [(&controller[..], "TERM"), (&controller, "INT"), (&agent, "TERM"), (&agent, "INT"), (&registry, "TERM")]
    {
        let mut daemon = start(arguments);
        let status =
            std::process::Command::new("sh").args(["-c", &format!("kill -{signal} {}", daemon.id())]).status().unwrap();
        assert!(status.success());
        assert_eq!(daemon.wait().unwrap().code(), Some(0), "{arguments:?} {signal}");
    }
}

/// Starts a daemon and waits for its `ready` line.
fn start(arguments: &[&str]) -> Child {
    let mut daemon = faasnet(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("ready listen=127."), "{arguments:?}: {line:?}");
    daemon
}

/// Catches help without examples, help that is too wide, and a closed pipe that becomes an error.
#[test]
fn help_is_useful_and_fits() {
    for command in
        ["", "demo", "controller", "agent", "function create", "provision", "pull", "image build", "registry"]
    {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let help = text(&arguments);
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        assert!(help.contains("Example") || command == "registry", "{command}:\n{help}");
    }
    assert_eq!(run(&["fly"]).status.code(), Some(2));
    let closed = format!("{} nodes --help | head -c 1 >/dev/null", crate::common::exe().display());
    assert!(std::process::Command::new("sh").args(["-c", &closed]).status().unwrap().success());
}
