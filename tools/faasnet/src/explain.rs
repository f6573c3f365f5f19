//! `faasnet explain`: where the time of the last pull on a node went, who served how much of it, and why somebody else than the
//! planned parent did.

use anyhow::{Result, bail};
use clap::Args;
use faasnet_api::v1;
use serde::Serialize;

use crate::cli::{Global, Tenant};
use crate::client::{self, Control};
use crate::output;
use crate::view::{self, FunctionView, GivenUpView, Names, NodeView, StoryView, TreeView, UpstreamView};

/// `faasnet explain`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  faasnet explain resize               all nodes in one table, the slowest last
  faasnet explain resize --node web7   one node: who served it, and why not the planned parent")]
pub struct ExplainArgs {
    /// The function's name, its image's reference, or the beginning of its image's id
    #[arg(value_name = "FUNCTION|IMAGE")]
    pub what: String,
    /// One node, by its name or id; without it all nodes are listed
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Whose it is.
    #[command(flatten)]
    pub tenant: Tenant,
}

/// A pull that took long, or that is looked at alone, node by node.
#[derive(Debug, Serialize)]
struct Explained {
    function: FunctionView,
    nodes: Vec<NodeStory>,
}

/// The last pull of one node.
#[derive(Debug, Serialize)]
struct NodeStory {
    #[serde(flatten)]
    node: NodeView,
    story: StoryView,
    served_by: Vec<Served>,
}

/// One upstream of the pull.
#[derive(Debug, Serialize)]
struct Served {
    #[serde(flatten)]
    upstream: UpstreamView,
    /// Why it was this one, for people.
    why: String,
}

/// See the module's documentation.
pub async fn run(global: &Global, args: ExplainArgs) -> Result<()> {
    let control = &mut global.connect().await?;
    let (tenant, function) = find(control, &args).await?;
    let names = client::node_names(control).await?;
    let request = v1::GetTreeRequest { tenant, function };
    let reply = control.get_tree(request).await.map_err(client::explain)?.into_inner();
    let mut explained = explain(&reply, &names);
    let Some(wanted) = &args.node else {
        if global.json {
            return output::json(&explained);
        }
        return output::line(overview(&explained));
    };
    explained.nodes.retain(|story| story.node.name == *wanted || story.node.id == *wanted);
    let Some(story) = explained.nodes.first() else {
        bail!(
            "node {wanted} does not hold {}; see who does: faasnet tree {}",
            explained.function.function,
            explained.function.function
        );
    };
    if global.json {
        return output::json(story);
    }
    output::line(story.text())
}

/// The function that is meant: by its own name, or by that of its image.
async fn find(control: &mut Control, args: &ExplainArgs) -> Result<(String, String)> {
    let reply = control.list_functions(v1::ListFunctionsRequest {}).await.map_err(client::explain)?.into_inner();
    let functions: Vec<FunctionView> = reply.functions.iter().map(FunctionView::from).collect();
    let of_tenant = || functions.iter().filter(|function| function.tenant == args.tenant.tenant);
    let named = of_tenant().find(|function| function.function == args.what);
    let is_image = |function: &&FunctionView| {
        function.reference == args.what || (args.what.len() >= 8 && function.image_id.starts_with(&args.what))
    };
    let of_image: Vec<_> = of_tenant().filter(is_image).collect();
    let names = |function: &FunctionView| Ok((function.tenant.clone(), function.function.clone()));
    match (named, of_image.as_slice()) {
        (Some(function), _) => names(function),
        (None, [function]) => names(function),
        (None, []) => bail!(
            "tenant {} has no function {}, nor one of an image of that name; list them: faasnet function ls",
            args.tenant.tenant,
            args.what
        ),
        (None, several) => {
            let names: Vec<&str> = several.iter().map(|function| function.function.as_str()).collect();
            bail!("several functions have the image {}: {}; name one of them", args.what, names.join(", "))
        }
    }
}

fn explain(reply: &v1::GetTreeReply, names: &Names) -> Explained {
    let trees = TreeView::all(&reply.trees, names);
    let mut nodes: Vec<NodeStory> = reply.nodes.iter().map(|node| NodeStory::new(node, &trees, names)).collect();
    nodes.sort_by_key(|story| view::natural(&story.node.name));
    Explained { function: reply.function.as_ref().map(FunctionView::from).unwrap_or_default(), nodes }
}

impl NodeStory {
    fn new(progress: &v1::NodeProgress, trees: &[TreeView], names: &Names) -> Self {
        let node = NodeView::new(progress, names);
        let told = progress.progress.as_ref().and_then(|progress| progress.story.clone()).unwrap_or_default();
        let story = StoryView::new(&told, names);
        let served = |upstream: &UpstreamView| Served {
            why: why(&node.name, upstream, &story, trees),
            upstream: upstream.clone(),
        };
        let served_by = node.upstreams.iter().map(served).collect();
        Self { node, story, served_by }
    }

    /// From the first block to the last, or to now.
    fn transfer_seconds(&self) -> f64 {
        match self.story.first_block_seconds {
            Some(first) => (self.node.seconds - first).max(0.0),
            None => 0.0,
        }
    }

    fn text(&self) -> String {
        let Self { node, story, .. } = self;
        let mut lines = vec![format!(
            "{}: {} in {} ({} of {}), after {} in the controller's queue",
            node.name,
            node.state,
            time(node.seconds),
            output::bytes(node.bytes_present),
            output::bytes(node.bytes_total),
            time(story.queued_seconds)
        )];
        if !node.error.is_empty() {
            lines.push(format!("  {}", output::one_line(&node.error)));
        }
        let steps = [
            (story.welcomed_seconds, "let in by its first upstream"),
            (story.opened_seconds, "descriptor known, file open"),
            (story.first_block_seconds, "first block verified"),
        ];
        let mut steps: Vec<(f64, &str)> = steps.into_iter().filter_map(|(at, what)| Some((at?, what))).collect();
        steps.sort_by(|a, b| a.0.total_cmp(&b.0));
        lines.extend(steps.iter().map(|(at, what)| format!("  {:>9}  {what}", time(*at))));
        if node.is_complete() {
            lines.push(format!("  {:>9}  last block stored", time(node.seconds)));
        }
        lines.push(format!(
            "verified {} blocks in {}; {} came from other images on its disk",
            story.blocks_verified,
            time(story.verifying_seconds),
            output::bytes(node.bytes_reused)
        ));
        for stalls in &story.stalls {
            lines.push(match stalls.count {
                0 => format!("stripe {}: no stall, longest gap {}", stalls.stripe, time(stalls.longest_seconds)),
                count => format!(
                    "stripe {}: stalled {count} {}, {} in all, the longest {}",
                    stalls.stripe,
                    if count == 1 { "time" } else { "times" },
                    time(stalls.seconds),
                    time(stalls.longest_seconds)
                ),
            });
        }
        let rows = self.served_by.iter().map(|served| {
            let UpstreamView { stripe, node, bytes } = &served.upstream;
            vec![stripe.to_string(), node.clone(), output::bytes(*bytes), served.why.clone()]
        });
        lines.push(output::table(&["stripe", "served by", ">payload", "why"], rows));
        lines.extend(story.given_up.iter().map(|entry| {
            let reason = output::one_line(&entry.reason);
            format!("gave up {} after {}, stripe {}: {reason}", entry.node, time(entry.at_seconds), entry.stripe)
        }));
        lines.join("\n")
    }
}

/// Milliseconds where seconds would all be zero.
fn time(seconds: f64) -> String {
    if seconds < 0.9995 { format!("{:.0} ms", seconds * 1e3) } else { output::seconds(seconds) }
}

/// Why this upstream served: the plan, or what went wrong before.
fn why(node: &str, upstream: &UpstreamView, story: &StoryView, trees: &[TreeView]) -> String {
    let tree = trees.iter().find(|tree| tree.stripe == upstream.stripe);
    let planned = tree.and_then(|tree| tree.edges.iter().find(|edge| edge.node == node)).map(|edge| &edge.parent);
    match (planned == Some(&upstream.node), upstream.is_origin()) {
        (true, true) => "root of this stripe".into(),
        (true, false) => "planned parent".into(),
        (false, _) => match &others_given_up(upstream, story)[..] {
            [] => "by an earlier plan".into(),
            [other] => format!("{} was given up: {}", other.node, output::one_line(&other.reason)),
            [others @ .., last] => {
                let others: Vec<&str> = others.iter().map(|other| other.node.as_str()).collect();
                format!("{} and {} were given up", others.join(", "), last.node)
            }
        },
    }
}

/// Who failed in this stripe beside `upstream`, each with its first reason. When `upstream` began to serve is not known, only that it did
/// before it was given up itself; so whoever failed after that is no reason, and of those before it none is singled out.
fn others_given_up<'a>(upstream: &UpstreamView, story: &'a StoryView) -> Vec<&'a GivenUpView> {
    let of_stripe = story.given_up.iter().filter(|entry| entry.stripe == upstream.stripe);
    let before = of_stripe.take_while(|entry| entry.node != upstream.node);
    let mut others: Vec<&GivenUpView> = Vec::new();
    for entry in before {
        if others.iter().all(|known| known.node != entry.node) {
            others.push(entry);
        }
    }
    others
}

/// All nodes in one table, the slowest last.
fn overview(explained: &Explained) -> String {
    let function = &explained.function;
    if explained.nodes.is_empty() {
        return format!("no node holds {0}; put it on some: faasnet provision {0} --count N", function.function);
    }
    let mut nodes: Vec<&NodeStory> = explained.nodes.iter().collect();
    nodes.sort_by(|a, b| a.node.seconds.total_cmp(&b.node.seconds));
    let or_none = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), time);
    let rows = nodes.iter().map(|story| {
        // Not `sum`: of nothing it is -0.
        let stalled = story.story.stalls.iter().fold(0.0, |all, stalls| all + stalls.seconds);
        vec![
            story.node.name.clone(),
            story.node.state.clone(),
            time(story.story.queued_seconds),
            or_none(story.story.welcomed_seconds),
            or_none(story.story.first_block_seconds),
            time(story.transfer_seconds()),
            time(story.story.verifying_seconds),
            time(stalled),
            time(story.node.seconds),
            story.story.given_up.len().to_string(),
        ]
    });
    let columns =
        ["node", "state", ">queue", ">let in", ">1st block", ">transfer", ">verify", ">stalled", ">total", ">given up"];
    let table = output::table(&columns, rows);
    let hint = format!("One node's story: faasnet explain {} --node NAME", function.function);
    format!(
        "{}/{}  {}  {}\n{table}\n{hint}",
        function.tenant,
        function.function,
        function.reference,
        output::bytes(function.image_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> Vec<u8> {
        vec![n; 16]
    }

    fn reply() -> v1::GetTreeReply {
        let used = |node: Vec<u8>, bytes| v1::UpstreamUse { node_id: node, bytes, ..Default::default() };
        let gave_up =
            v1::UpstreamGivenUp { at_us: 510_000, stripe: 0, node_id: id(2), reason: "silent\nfor 250 ms".into() };
        let stalls = v1::StripeStalls { stripe: 0, count: 1, total_us: 400_000, longest_us: 400_000 };
        let story = v1::PullStory {
            welcomed_us: 3_000,
            first_block_us: 50_000,
            stalls: vec![stalls],
            given_up: vec![gave_up],
            queued_us: 20_000,
            ..Default::default()
        };
        let progress = v1::FunctionProgress {
            state: v1::FunctionState::Complete.into(),
            elapsed_us: 1_500_000,
            upstreams: vec![used(id(2), 7), used(id(1), 9)],
            story: Some(story),
            ..Default::default()
        };
        let node =
            |n, name: &str, progress| v1::NodeProgress { node_id: id(n), name: name.into(), progress, alive: true };
        let edge = |node, parent| v1::TreeEdge { node_id: node, parent };
        v1::GetTreeReply {
            function: Some(v1::FunctionInfo { function: "resize".into(), ..Default::default() }),
            trees: vec![v1::Tree { edges: vec![edge(id(1), vec![]), edge(id(3), id(1))] }],
            nodes: vec![node(3, "c", Some(progress)), node(1, "a", None)],
            ..Default::default()
        }
    }

    fn names() -> Names {
        [(id(1), "a".to_owned()), (id(2), "b".to_owned()), (id(3), "c".to_owned())].into()
    }

    /// Catches a fallback that is called the plan, a lost reason, and a silence that is not told.
    #[test]
    fn a_failover_is_told_with_its_reason() {
        let explained = explain(&reply(), &names());
        let story = explained.nodes.iter().find(|story| story.node.name == "c").unwrap();
        let text = story.text();
        assert!(
            text.contains("complete in 1.50 s")
                && text.contains("stalled 1 time, 400 ms")
                && text.contains("3 ms  let in"),
            "{text}"
        );
        assert_eq!(story.served_by[1].why, "planned parent");
        assert_eq!(story.served_by[0].why, "by an earlier plan");
        assert!(text.contains("gave up b after") && text.contains("silent for 250 ms"), "{text}");
    }

    /// Catches a reason that came later than what it explains, and one that is picked out of several by chance.
    #[test]
    fn only_who_failed_before_is_a_reason() {
        let entry =
            |node: &str, stripe| GivenUpView { stripe, node: node.into(), reason: "reset".into(), at_seconds: 1.0 };
        let given_up = ["p", "f1", "f2", "p"].map(|node| entry(node, 0)).into();
        let mut story = StoryView { given_up, ..StoryView::default() };
        story.given_up.insert(0, entry("x", 1));
        let of = |node: &str| why("c", &UpstreamView { stripe: 0, node: node.into(), bytes: 1 }, &story, &[]);
        assert_eq!(of("f1"), "p was given up: reset");
        assert_eq!(of("f2"), "p and f1 were given up");
        assert_eq!(of("f3"), "p, f1 and f2 were given up");
        assert_eq!(of("p"), "by an earlier plan");
    }

    /// Catches an overview that needs a story from a node which has not reported one.
    #[test]
    fn nodes_without_a_report_are_listed() {
        let text = overview(&explain(&reply(), &names()));
        assert!(text.lines().any(|line| line.trim_start().starts_with("a ")) && text.contains("--node NAME"), "{text}");
        let none = Explained { function: FunctionView::default(), nodes: Vec::new() };
        assert!(overview(&none).starts_with("no node holds"));
    }
}
