// Where the nodes of a tree stand: leaves side by side, parents above the middle of their children, the origin on top. Pure.

export const COLUMN = 64, ROW = 84, TOP = 26;

// `edges`: [{ node_id, parent }], parent "" for the root. Returns { width, height, places: Map(id -> { x, y }) }.
export function layout(edges) {
  const children = new Map();
  const known = new Set(edges.map((edge) => edge.node_id));
  for (const { node_id, parent } of edges) {
    // A parent that is not in the list is on its way out: its child hangs below the origin meanwhile.
    const above = known.has(parent) ? parent : "";
    if (!children.has(above)) children.set(above, []);
    children.get(above).push(node_id);
  }
  const places = new Map();
  let column = 0, depth = 0;
  // Without recursion: a chain of ten thousand nodes is a tree too.
  const stack = [["", 0, false]];
  while (stack.length) {
    const [id, level, done] = stack.pop();
    const below = children.get(id) || [];
    if (done || below.length === 0) {
      const xs = below.map((child) => places.get(child).x);
      const x = xs.length ? (xs[0] + xs[xs.length - 1]) / 2 : (column++ + 0.5) * COLUMN;
      places.set(id, { x, y: TOP + level * ROW });
      depth = Math.max(depth, level);
    } else {
      stack.push([id, level, true]);
      for (const child of [...below].reverse()) stack.push([child, level + 1, false]);
    }
  }
  // Few nodes are not blown up to the width of the screen.
  const used = Math.max(column, 1) * COLUMN, width = Math.max(used, 6 * COLUMN);
  for (const place of places.values()) place.x += (width - used) / 2;
  return { width, height: TOP + depth * ROW + 46, places };
}
