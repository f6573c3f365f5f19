//! The Grafana dashboard against the metrics of running daemons.

use std::collections::BTreeSet;

use faasnet::registry::RegistryOptions;

use crate::common::{Lab, MIB, noise};

const DASHBOARD: &str = include_str!("../../packaging/grafana-dashboard.json");

/// Catches a panel that stays empty because its metric was renamed or never existed.
#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_dashboard_is_exported() {
    let lab = Lab::start(1, &[("app", vec![noise(1, MIB)])], RegistryOptions::default()).await;
    lab.create("app", "twin").await.unwrap();
    lab.provision("app").await.unwrap();
    let mut exported = BTreeSet::new();
    for address in [lab.cluster.controller.address("http"), lab.cluster.agents[0].address("admin")] {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let text = http.get(format!("http://{address}/metrics")).send().await.unwrap().text().await.unwrap();
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned));
        exported.extend(names);
    }
    let named = named(&serde_json::from_str(DASHBOARD).unwrap());
    assert!(named.len() > 20, "{named:?}");
    let unknown: Vec<_> = named.difference(&exported).collect();
    assert!(unknown.is_empty(), "no daemon exports {unknown:?}; there are {exported:?}");
}

/// The metrics in the queries (`expr`, and the query of a variable), wherever they are. A histogram's series count as their histogram.
fn named(value: &serde_json::Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    match value {
        serde_json::Value::Object(object) => {
            for (key, value) in object {
                match value.as_str().filter(|_| ["expr", "query"].contains(&key.as_str())) {
                    Some(query) => names.extend(words(query)),
                    None => names.extend(named(value)),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| names.extend(named(value))),
        _ => {}
    }
    names
}

fn words(query: &str) -> impl Iterator<Item = String> {
    let words =
        query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("faasnet_"));
    words.map(|word| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).to_owned()
    })
}
