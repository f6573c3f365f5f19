//! The controller's live page in a real browser, over a real cluster.

use faasnet::functions;
use faasnet::registry::RegistryOptions;
use faasnet_api::v1;

use crate::browser::Browser;
use crate::common::{Lab, MIB, TENANT, layout, noise};

const AGENTS: usize = 4;
/// An image and an origin's rate that make a transfer of about four seconds.
const IMAGE_BYTES: u64 = 8 * MIB;
const RATE: u64 = 2 * MIB;

/// The names in the tree of one stripe, sorted.
fn placed(stripe: usize) -> String {
    format!(
        "[...document.querySelectorAll('#trees figure')[{stripe}].querySelectorAll('.place:not(.origin)')]\
         .map((place) => place.dataset.name).sort().join()"
    )
}

/// Catches a page that does not load, shows no tree, shows no bytes that flow, misses a death or the end of a transfer, or stays blind
/// after a restart of the controller.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_a_transfer_and_a_death() {
    let Some(mut browser) = Browser::start() else { return };
    let options = RegistryOptions { rate: Some(RATE), ..RegistryOptions::default() };
    let mut lab = Lab::start(AGENTS, &[("app", vec![noise(1, IMAGE_BYTES)])], options).await;
    browser.emulate(1280, 1200, "light");
    browser.open(&format!("{}/", lab.cluster.http_url()));
    browser.wait("document.querySelectorAll('#nodes li.live').length === 4");
    browser.wait("document.getElementById('no-functions')?.hidden === false");
    lab.create("app", "twin").await.unwrap();
    browser.wait("document.querySelector('#functions button')?.innerText.includes('test/app')");
    lab.begin_provision("app").await;
    browser.wait("document.querySelectorAll('#trees figure').length === 2");
    for stripe in [0, 1] {
        browser.wait(&format!("{} === 'n1,n2,n3,n4'", placed(stripe)));
    }
    browser.wait("document.querySelectorAll('#trees .edge.flowing').length >= 4");
    browser.wait("/\\d (KiB|MiB)\\/s/.test(document.querySelector('#trees .rate')?.textContent)");
    browser.wait("document.getElementById('progress').classList.contains('done')");
    browser.wait("document.querySelectorAll('#trees .place.complete').length === 8");
    browser.wait("document.querySelectorAll('#members td.state.complete').length === 4");
    lab.cluster.agents[2].kill().await.unwrap();
    browser.wait("document.querySelector('#nodes li.dead')?.textContent === 'n3'");
    for stripe in [0, 1] {
        browser.wait(&format!("{} === 'n1,n2,n4'", placed(stripe)));
    }
    assert_eq!(browser.complaints, [""; 0]);
    lab.cluster.controller.kill().await.unwrap();
    browser.wait("document.getElementById('link').classList.contains('down')");
    lab.cluster.restart_controller().await.unwrap();
    browser.wait("document.getElementById('link').classList.contains('up')");
    browser.wait("document.getElementById('about').textContent === 'term 2'");
    browser.wait(&format!("{} === 'n1,n2,n4'", placed(1)));
    if let Some(path) = std::env::var_os("FAASNET_TEST_SCREENSHOT") {
        browser.screenshot(path.as_ref());
    }
}

/// Catches text from the cluster that becomes markup, a page that scrolls sideways on a phone, and one that is bright in the dark.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_escapes_and_fits() {
    let Some(mut browser) = Browser::start() else { return };
    let lab = Lab::start(1, &[], RegistryOptions::default()).await;
    let folder = layout(lab.dir.path(), "<img src=x onerror=\"document.title='taken'\">", &[noise(1, 1_000)]);
    let request = v1::CreateFunctionRequest {
        tenant: TENANT.into(),
        function: "a-name-that-is-as-long-as-people-make-them-0123456789".into(),
        reference: folder.display().to_string(),
        ..Default::default()
    };
    functions::create(&mut lab.cluster.control().await.unwrap(), request, |_, _| ()).await.unwrap();
    let mut grounds = Vec::new();
    for (width, scheme) in [(390, "dark"), (1280, "light")] {
        browser.emulate(width, 800, scheme);
        browser.open(&format!("{}/", lab.cluster.http_url()));
        browser.wait("document.getElementById('facts')?.innerText.includes('<img src=x')");
        assert_eq!(browser.evaluate("document.title"), "FaaSNet");
        assert_eq!(browser.evaluate("document.images.length"), 0);
        assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), width);
        grounds.push(browser.evaluate("getComputedStyle(document.body).backgroundColor"));
    }
    assert_ne!(grounds[0], grounds[1], "dark and light look the same");
    assert_eq!(browser.complaints, [""; 0]);
}
