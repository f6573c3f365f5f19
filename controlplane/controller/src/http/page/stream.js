// The controller's watch stream, kept open: what it says is put together to one picture of the cluster.

const RETRY_MS = 1000;
const SILENCE_MS = 15000;

// Calls `changed(picture)` after every message and `linked(up)` when the connection comes or goes. Returns a function that ends it.
export function watch(tenant, name, changed, linked) {
  let source, timer, ended = false, picture = empty();
  const again = () => {
    source.close();
    clearTimeout(timer);
    if (ended) return;
    linked(false);
    timer = setTimeout(open, RETRY_MS);
  };
  const heard = () => {
    clearTimeout(timer);
    // The controller says something every five seconds: silence means that the connection is dead without a word.
    timer = setTimeout(again, SILENCE_MS);
  };
  const open = () => {
    source = new EventSource("v1/watch?" + new URLSearchParams({ tenant, function: name }));
    source.onmessage = (event) => {
      heard();
      picture = merge(picture, JSON.parse(event.data));
      linked(true);
      changed(picture);
    };
    source.onerror = again;
    heard();
  };
  open();
  return () => { ended = true; again(); };
}

function empty() {
  return { term: 0, nodes: new Map(), functions: [], tree: null, members: new Map() };
}

export function merge(before, message) {
  const picture = message.first ? empty() : before;
  picture.term = message.term;
  for (const node of message.nodes) picture.nodes.set(node.node_id, node);
  for (const id of message.nodes_gone) picture.nodes.delete(id);
  if (message.functions) picture.functions = message.functions.functions;
  if (message.tree) picture.tree = message.tree;
  for (const member of message.members) picture.members.set(member.node_id, member);
  for (const id of message.members_gone) picture.members.delete(id);
  return picture;
}
