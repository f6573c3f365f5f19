// The live page: draws what the watch stream says. Text from the cluster only ever becomes text nodes and attributes.

import { watch } from "./stream.js";
import { layout } from "./layout.js";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const RADIUS = 17, LABELS = 80, CIRCLE = 2 * Math.PI * RADIUS;

let chosen = null;
let stop = () => {};
let latest = null;
let drawing = false;

// ---- small helpers ----

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function svg(tag, attributes = {}) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Makes the children of `parent` one element per item, reusing those there are, in order.
function keyed(parent, items, key, make, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const id = key(item);
    let child = old.get(id);
    if (!child) {
      child = make(item);
      child.dataset.key = id;
    }
    old.delete(id);
    update(child, item);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const child of old.values()) child.remove();
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1024; unit++; }
  return `${unit && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

const natural = new Intl.Collator("en", { numeric: true });
const byName = (a, b) => natural.compare(a.name, b.name);
const nodeName = (picture, id) => picture.nodes.get(id)?.name ?? picture.members.get(id)?.name ?? id.slice(0, 8);

// What a member is to people: dead wins over what it last said.
function memberState(picture, id) {
  const member = picture.members.get(id), node = picture.nodes.get(id);
  if (node?.state === "dead" || (member && !member.alive)) return "dead";
  return member?.progress?.state ?? "waiting";
}

function share(progress) {
  if (!progress) return 0;
  if (progress.state === "complete") return 1;
  return progress.bytes_total ? Math.min(1, progress.bytes_present / progress.bytes_total) : 0;
}

// ---- nodes and functions ----

function drawNodes(picture) {
  const nodes = [...picture.nodes.values()].sort(byName), counts = new Map();
  for (const node of nodes) counts.set(node.state, (counts.get(node.state) || 0) + 1);
  $("node-counts").textContent = [...counts].map(([state, count]) => `${count} ${state}`).join(" · ");
  $("no-nodes").hidden = nodes.length > 0;
  $("nodes").classList.toggle("many", nodes.length > 60);
  keyed($("nodes"), nodes, (node) => node.node_id, () => element("li"), (item, node) => {
    const apart = node.quarantine ? `quarantined: ${node.quarantine}` : node.draining ? "draining" : "";
    item.className = `${node.state}${apart ? " apart" : ""}`;
    item.textContent = node.name;
    const facts = [node.name, node.state, apart, node.pace, node.data_address, `${node.functions} functions`];
    item.title = facts.filter(Boolean).join(" · ");
  });
}

const functionKey = (info) => `${info.tenant}/${info.function}`;

function drawFunctions(picture) {
  const functions = [...picture.functions].sort((a, b) => natural.compare(functionKey(a), functionKey(b)));
  $("no-functions").hidden = functions.length > 0;
  const make = () => {
    const item = element("li"), button = element("button");
    button.type = "button";
    button.append(element("span"), element("small"));
    button.addEventListener("click", () => { location.hash = encodeURIComponent(item.dataset.key); });
    item.append(button);
    return item;
  };
  keyed($("functions"), functions, functionKey, make, (item, info) => {
    const button = item.firstElementChild;
    button.setAttribute("aria-pressed", String(functionKey(info) === chosen));
    button.firstElementChild.textContent = functionKey(info);
    button.lastElementChild.textContent = `${bytes(info.image_bytes)} · ${info.nodes} nodes`;
  });
  const there = functions.some((info) => functionKey(info) === chosen);
  if (!there && !location.hash && functions.length) choose(functionKey(functions[0]));
}

// ---- one function ----

function drawFunction(picture) {
  const info = picture.functions.find((info) => functionKey(info) === chosen);
  $("function").hidden = !info || !picture.tree;
  if (!info || !picture.tree) return;
  $("function-title").textContent = chosen;
  const members = [...picture.members.values()].sort(byName);
  const rates = { origin: 0, nodes: 0 };
  let present = 0;
  for (const { progress } of members) {
    present += share(progress);
    for (const use of progress?.upstreams ?? []) rates[use.node_id ? "nodes" : "origin"] += use.bytes_per_second;
  }
  const complete = members.filter((member) => member.progress?.state === "complete").length;
  const facts = [
    ["image", `${info.reference} · ${bytes(info.image_bytes)} in ${info.blobs} blobs`],
    ["complete", `${complete} of ${members.length} nodes`],
    ["from the origin", `${bytes(rates.origin)}/s`],
    ["between nodes", `${bytes(rates.nodes)}/s`],
    ["trees", `${info.policy} · term ${picture.tree.term} · epoch ${picture.tree.epoch}`],
  ];
  if (info.next_reference) facts.push(["next image", `${info.next_reference}, taken up by the next provision`]);
  if (info.note) facts.push(["note", info.note]);
  keyed($("facts"), facts, (fact) => fact[0], ([name]) => {
    const row = element("div");
    row.append(element("dt", "", name), element("dd"));
    return row;
  }, (row, fact) => { row.lastElementChild.textContent = fact[1]; });
  $("progress").value = members.length ? present / members.length : 0;
  $("progress").classList.toggle("done", members.length > 0 && complete === members.length);
  drawTrees(picture);
  drawMembers(picture, members);
}

function drawMembers(picture, members) {
  const make = () => {
    const row = element("tr");
    for (const kind of ["", "state", "", "number", "number", "number", "number", "number"]) row.append(element("td", kind));
    return row;
  };
  keyed($("members"), members, (member) => member.node_id, make, (row, member) => {
    const progress = member.progress, state = memberState(picture, member.node_id), cells = row.children;
    const rate = (progress?.upstreams ?? []).reduce((sum, use) => sum + use.bytes_per_second, 0);
    cells[0].textContent = member.name;
    cells[1].className = `state ${state}`;
    cells[1].textContent = progress?.error ? `${state}: ${progress.error}` : state;
    cells[2].textContent = `${Math.floor(share(progress) * 100)} %`;
    cells[3].textContent = rate ? `${bytes(rate)}/s` : "";
    cells[4].textContent = bytes(progress?.bytes_received ?? 0);
    cells[5].textContent = bytes(progress?.bytes_live ?? 0);
    cells[6].textContent = bytes(progress?.bytes_from_store ?? 0);
    cells[7].textContent = progress?.elapsed_us ? `${(progress.elapsed_us / 1e6).toFixed(1)} s` : "";
  });
}

// ---- trees ----

function drawTrees(picture) {
  const trees = picture.tree.trees.map((tree, stripe) => ({ ...tree, stripe })).filter((tree) => tree.edges.length);
  keyed($("trees"), trees, (tree) => String(tree.stripe), (tree) => {
    const figure = element("figure"), drawn = svg("svg", { role: "img" });
    drawn.append(svg("g", { class: "edges" }), svg("g", { class: "rates" }), svg("g", { class: "places" }));
    figure.append(element("figcaption"), drawn);
    return figure;
  }, (figure, tree) => drawTree(picture, figure, tree));
}

// The planned edges of a stripe, and those by which bytes flow though they are not planned.
function edgesOf(picture, tree) {
  const edges = new Map();
  for (const { node_id, parent } of tree.edges) edges.set(`${parent}>${node_id}`, { node_id, parent, rate: 0, planned: true });
  for (const [id, member] of picture.members) {
    for (const use of member.progress?.upstreams ?? []) {
      if (use.stripe !== tree.stripe || !use.bytes_per_second) continue;
      const key = `${use.node_id}>${id}`;
      const edge = edges.get(key) ?? { node_id: id, parent: use.node_id, planned: false };
      edges.set(key, { ...edge, rate: use.bytes_per_second });
    }
  }
  return [...edges].map(([key, edge]) => ({ key, ...edge }));
}

function drawTree(picture, figure, tree) {
  const { width, height, places } = layout(tree.edges);
  const [caption, drawn] = figure.children, [lines, rates, spots] = drawn.children;
  const root = tree.edges.find((edge) => !edge.parent);
  caption.textContent = `stripe ${tree.stripe} · root ${root ? nodeName(picture, root.node_id) : "none"} · ${tree.edges.length} nodes`;
  drawn.setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawn.setAttribute("aria-label", `Function Tree of stripe ${tree.stripe}`);
  const edges = edgesOf(picture, tree).filter((edge) => places.has(edge.parent) && places.has(edge.node_id));
  keyed(lines, edges, (edge) => edge.key, () => svg("path"), (path, edge) => {
    const from = places.get(edge.parent), to = places.get(edge.node_id), middle = (from.y + to.y) / 2;
    path.setAttribute("class", `edge${edge.rate ? " flowing" : ""}${edge.planned ? "" : " guest"}`);
    path.setAttribute("d", `M${from.x} ${from.y}C${from.x} ${middle} ${to.x} ${middle} ${to.x} ${to.y}`);
    path.setAttribute("stroke-width", edge.rate ? (1.5 + Math.min(4, Math.log2(1 + edge.rate / 1e6))).toFixed(1) : "1.5");
  });
  const labelled = tree.edges.length <= LABELS;
  const flowing = labelled ? edges.filter((edge) => edge.rate) : [];
  keyed(rates, flowing, (edge) => edge.key, () => svg("text", { class: "rate" }), (text, edge) => {
    const from = places.get(edge.parent), to = places.get(edge.node_id);
    // Nearer to the child, where the edges of siblings are apart.
    text.setAttribute("x", from.x + (to.x - from.x) * 0.65);
    text.setAttribute("y", from.y + (to.y - from.y) * 0.58 + 3);
    text.textContent = `${bytes(edge.rate)}/s`;
  });
  keyed(spots, [...places], ([id]) => id || "origin", ([id]) => (id ? spot() : origin()), (group, [id, place]) => {
    group.style.transform = `translate(${place.x}px, ${place.y}px)`;
    if (id) drawSpot(picture, group, id, labelled);
  });
}

function spot() {
  const group = svg("g");
  const ring = svg("circle", { class: "ring", r: RADIUS, "stroke-dasharray": CIRCLE });
  group.append(svg("title"), svg("circle", { class: "body", r: RADIUS }), ring, svg("text", { y: 4 }));
  return group;
}

function origin() {
  const group = svg("g", { class: "place origin" }), text = svg("text", { y: 4 });
  text.textContent = "origin";
  group.append(svg("rect", { x: -28, y: -12, width: 56, height: 24, rx: 6 }), text);
  return group;
}

function drawSpot(picture, group, id, labelled) {
  const [title, , ring, text] = group.children;
  const state = memberState(picture, id), name = nodeName(picture, id), part = share(picture.members.get(id)?.progress);
  group.setAttribute("class", `place ${state}`);
  group.dataset.name = name;
  ring.setAttribute("stroke-dashoffset", (CIRCLE * (1 - part)).toFixed(2));
  title.textContent = `${name}: ${state}, ${Math.floor(part * 100)} %`;
  text.textContent = labelled ? (name.length > 6 ? `${name.slice(0, 5)}…` : name) : "";
}

// ---- the whole ----

function draw() {
  drawing = false;
  const picture = latest;
  $("about").textContent = `term ${picture.term}`;
  drawNodes(picture);
  drawFunctions(picture);
  drawFunction(picture);
}

function linked(up) {
  $("link").className = `link ${up ? "up" : "down"}`;
  $("link").textContent = up ? "live" : "no connection; trying again …";
}

function choose(key) {
  if (key === chosen) return;
  chosen = key;
  stop();
  const cut = key.indexOf("/");
  stop = watch(key.slice(0, Math.max(cut, 0)), key.slice(cut + 1), (picture) => {
    latest = picture;
    // Timers run in hidden pages too, which animation frames do not; one drawing serves several messages.
    if (!drawing) setTimeout(draw, 0);
    drawing = true;
  }, linked);
}

function fromAddress() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

window.addEventListener("hashchange", () => choose(fromAddress()));
choose(fromAddress());
