"use strict";
// Draws the data on a canvas: only what is in view, so that thousands of boxes move at once. Text from the graph
// goes through textContent and fillText only.

const root = document.documentElement;
addEventListener("error", (event) => { root.dataset.error = event.message; });

const FILLS = ["#dbe9f9", "#fbe3c8", "#dff2d8", "#f6d9e6", "#e6defa", "#f7f3c6"];
const EDGES = ["#7da3d0", "#d9a35c", "#86bb74", "#d088a8", "#a08cd4", "#c4b84e"];
const WIDTH = 178, HEIGHT = 44, STEP_X = 206, STEP_Y = 96;
const CROSS = "#c0392b";
// Zoom from which text is drawn.
const READABLE = 0.42;
const LISTED = 200;

const all = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
// Of a run with several programs, the address says which is drawn, by its number or by a node of it.
const address = decodeURIComponent(location.hash.slice(1));
const program = all.programs ? chosen() : null;
const NOTHING = { predicted_us: null, devices: [], items: [], tensors: [], crossings: [], absent: [], gaps: [], memory: [],
  measured: null, drawing: { nodes: [], edges: [] } };
const data = all.programs ? known(program) || NOTHING : all;
const canvas = byId("graph"), pen = canvas.getContext("2d");
const deviceOf = new Map(data.devices.map((device, i) => [device.name, i]));

const boxes = data.drawing.nodes.map(([kind, index, x, y], id) => {
  const isItem = kind === "kernel" || kind === "variable" || kind === "store";
  const item = isItem ? data.items[index] : null;
  const tensor = isItem ? null : data.tensors[index];
  return { id, kind, item, tensor, x: x * STEP_X, y: y * STEP_Y, device: item ? deviceOf.get(item.device) : 0,
    title: title(kind, item, tensor), note: note(kind, item, tensor), into: [], out: [] };
});
const lines = data.drawing.edges.map(([from, to, tensor, crossing]) => {
  const line = { from: boxes[from], to: boxes[to], tensor: data.tensors[tensor],
    crossing: crossing === null ? null : data.crossings[crossing] };
  line.from.out.push(line);
  line.to.into.push(line);
  return line;
});
// Boxes of a row by their place, to find the one under the pointer.
const rows = new Map();
for (const box of boxes) {
  const key = Math.round(box.y / STEP_Y);
  if (!rows.has(key)) rows.set(key, []);
  rows.get(key).push(box);
}

let zoom = 1, left = 0, top_ = 0, selected = null, queued = false;
// Until somebody moves it, the drawing fits the window.
let isFitted = true;

function known(at) {
  const program = all.programs[at];
  return program && !program.unknown ? program : null;
}

function chosen() {
  const number = /^program=(\d+)$/.exec(address);
  if (number) return Number(number[1]);
  const has = (program) => !program.unknown && program.items.some((item) =>
    item.nodes.some((node) => node.toLowerCase().includes(address.toLowerCase())));
  const named = address ? all.programs.findIndex(has) : -1;
  return named >= 0 ? named : Math.max(0, all.programs.findIndex((program) => !program.unknown));
}

function title(kind, item, tensor) {
  if (kind === "store") return "store into " + item.name;
  if (item) return item.nodes.length > 1 ? `${item.name} +${item.nodes.length - 1}` : item.name;
  return kind === "fetch" ? "fetch " + tensor.name : tensor.name;
}

function note(kind, item, tensor) {
  if (kind === "variable") return "variable";
  if (kind === "store") return "when the run commits";
  if (!item) return kind === "fetch" ? "to the caller" : { feed: "fed", session: "from the session" }[tensor.origin] || tensor.origin;
  const measured = item.measured_us === null ? "" : `, measured ${time(item.measured_us)}`;
  return `${item.kind === "again" ? "again, " : ""}${item.family}, ${time(item.cost_us)}${measured}`;
}

function time(us) {
  if (us === null || us === undefined) return "-";
  const size = Math.abs(us);
  if (size >= 1e6) return (us / 1e6).toPrecision(3) + " s";
  if (size >= 1e3) return (us / 1e3).toPrecision(3) + " ms";
  if (size >= 1 || size === 0) return Number(us.toPrecision(3)) + " us";
  return Number((us * 1e3).toPrecision(3)) + " ns";
}

function bytes(n) {
  if (n === null || n === undefined) return "-";
  for (const [size, name] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [1024, "KiB"]]) {
    if (n >= size) return (n / size).toFixed(1) + " " + name;
  }
  return n + " B";
}

function counted(n, what) { return `${n} ${what}${n === 1 ? "" : "s"}`; }

// ---- drawing

function queue() {
  if (queued) return;
  queued = true;
  requestAnimationFrame(() => { queued = false; draw(); });
}

// Draws what is in view, and gives the number of boxes and lines that were.
function draw() {
  const scale = devicePixelRatio || 1;
  const w = canvas.clientWidth, h = canvas.clientHeight;
  if (canvas.width !== Math.round(w * scale) || canvas.height !== Math.round(h * scale)) {
    canvas.width = Math.round(w * scale);
    canvas.height = Math.round(h * scale);
  }
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.setTransform(zoom * scale, 0, 0, zoom * scale, -left * zoom * scale, -top_ * zoom * scale);
  const view = { x0: left, y0: top_, x1: left + w / zoom, y1: top_ + h / zoom };
  const drawn = { lines: drawLines(view), boxes: drawBoxes(view) };
  if (zoom >= READABLE) drawLabels(view);
  return drawn;
}

function curve(line) {
  const x0 = line.from.x + WIDTH / 2, y0 = line.from.y + HEIGHT, x1 = line.to.x + WIDTH / 2, y1 = line.to.y;
  // From one column of a folded drawing to the next a line goes up.
  const bend = y1 > y0 ? Math.min((y1 - y0) / 2, STEP_Y) : STEP_Y / 2;
  pen.moveTo(x0, y0);
  pen.bezierCurveTo(x0, y0 + bend, x1, y1 - bend, x1, y1);
}

function inView(line, view) {
  const a = line.from, b = line.to;
  return Math.max(a.x, b.x) + WIDTH >= view.x0 && Math.min(a.x, b.x) <= view.x1
    && Math.max(a.y, b.y) + HEIGHT >= view.y0 && Math.min(a.y, b.y) <= view.y1;
}

function drawLines(view) {
  const shown = lines.filter((line) => inView(line, view));
  const stroke = (some, color, width) => {
    pen.strokeStyle = color;
    pen.lineWidth = width;
    pen.beginPath();
    some.forEach(curve);
    pen.stroke();
  };
  // A hair at any zoom.
  const hair = Math.max(1.2, 0.7 / zoom);
  // Lines that go far would hide those between neighbours.
  const isFar = (line) => Math.abs(line.to.y - line.from.y) > 4 * STEP_Y || Math.abs(line.to.x - line.from.x) > 4 * STEP_X;
  for (const [far, alpha] of [[true, 0.3], [false, 1]]) {
    pen.globalAlpha = alpha;
    EDGES.forEach((color, i) => stroke(
      shown.filter((line) => !line.crossing && isFar(line) === far && line.from.device % EDGES.length === i), color, hair));
  }
  stroke(shown.filter((line) => line.crossing), CROSS, Math.max(3.5, 1.6 / zoom));
  if (selected) {
    const ours = shown.filter((line) => line.from === selected || line.to === selected);
    stroke(ours.filter((line) => !line.crossing), "#1c2330", Math.max(2.2, 1.2 / zoom));
    stroke(ours.filter((line) => line.crossing), CROSS, Math.max(6, 3 / zoom));
  }
  return shown.length;
}

function drawBoxes(view) {
  let count = 0;
  for (const box of boxes) {
    if (box.x + WIDTH < view.x0 || box.x > view.x1 || box.y + HEIGHT < view.y0 || box.y > view.y1) continue;
    count += 1;
    const isWork = box.kind === "kernel" || box.kind === "variable";
    pen.fillStyle = isWork ? FILLS[box.device % FILLS.length] : "#ffffff";
    if (zoom < READABLE / 2) {
      // Too small for borders.
      pen.fillStyle = isWork ? EDGES[box.device % EDGES.length] : "#c3cad6";
      pen.fillRect(box.x, box.y, WIDTH, HEIGHT);
    } else {
      pen.strokeStyle = box === selected ? "#1c2330" : isWork ? EDGES[box.device % EDGES.length] : "#aab3c2";
      pen.lineWidth = box === selected ? 3 : 1.2;
      pen.setLineDash(isWork ? [] : [5, 4]);
      pen.beginPath();
      pen.roundRect(box.x, box.y, WIDTH, HEIGHT, box.kind === "kernel" ? 5 : HEIGHT / 2);
      pen.fill();
      pen.stroke();
    }
    if (zoom >= READABLE) drawText(box);
  }
  pen.setLineDash([]);
  return count;
}

function drawText(box) {
  pen.textAlign = "center";
  pen.fillStyle = "#1c2330";
  pen.font = "600 13px system-ui, 'DejaVu Sans', sans-serif";
  // The end of a name says most.
  pen.fillText(short(box.title, 22, true), box.x + WIDTH / 2, box.y + 18, WIDTH - 12);
  pen.fillStyle = "#556070";
  pen.font = "11px system-ui, 'DejaVu Sans', sans-serif";
  pen.fillText(short(box.note, 46, false), box.x + WIDTH / 2, box.y + 35, WIDTH - 12);
}

function short(text, most, keepEnd) {
  const chars = Array.from(text.slice(0, 2000));
  if (chars.length <= most) return text;
  return keepEnd ? "\u2026" + chars.slice(1 - most).join("") : chars.slice(0, most - 1).join("") + "\u2026";
}

// What crosses, where its line ends; of a tensor with several readers, at the first.
function drawLabels(view) {
  pen.textAlign = "center";
  pen.font = "600 12px system-ui, 'DejaVu Sans', sans-serif";
  const labelled = new Set();
  for (const line of lines) {
    if (!line.crossing || labelled.has(line.crossing) || !inView(line, view)) continue;
    labelled.add(line.crossing);
    const measured = line.crossing.measured_us === null ? "" : ` (measured ${time(line.crossing.measured_us)})`;
    const how = line.crossing.copy ? ", a copy" : "";
    const text = `${bytes(line.crossing.bytes)}${how}, ${time(line.crossing.predicted_us)}${measured}`;
    const x = (line.from.x + line.to.x + WIDTH) / 2, y = (line.from.y + HEIGHT + line.to.y) / 2 + 4;
    const width = pen.measureText(text).width + 10;
    pen.fillStyle = "#fffffff0";
    pen.fillRect(x - width / 2, y - 13, width, 18);
    pen.fillStyle = CROSS;
    pen.fillText(text, x, y);
  }
}

// ---- moving

function fit() {
  isFitted = true;
  let x1 = WIDTH, y1 = HEIGHT, x0 = 0, y0 = 0;
  for (const box of boxes) {
    x0 = Math.min(x0, box.x);
    y0 = Math.min(y0, box.y);
    x1 = Math.max(x1, box.x + WIDTH);
    y1 = Math.max(y1, box.y + HEIGHT);
  }
  const margin = 30, w = Math.max(canvas.clientWidth, 50), h = Math.max(canvas.clientHeight, 50);
  zoom = Math.min(1.25, (w - 2 * margin) / (x1 - x0), (h - 2 * margin) / (y1 - y0));
  zoom = Math.max(zoom, 0.002);
  left = (x0 + x1) / 2 - w / zoom / 2;
  top_ = (y0 + y1) / 2 - h / zoom / 2;
}

function zoomAt(factor, x, y) {
  const next = Math.min(4, Math.max(0.002, zoom * factor));
  isFitted = false;
  left += x / zoom - x / next;
  top_ += y / zoom - y / next;
  zoom = next;
  queue();
}

function center(box) {
  isFitted = false;
  zoom = Math.max(zoom, 0.9);
  left = box.x + WIDTH / 2 - canvas.clientWidth / zoom / 2;
  top_ = box.y + HEIGHT / 2 - canvas.clientHeight / zoom / 2;
  queue();
}

function boxAt(event) {
  const area = canvas.getBoundingClientRect();
  const x = left + (event.clientX - area.left) / zoom, y = top_ + (event.clientY - area.top) / zoom;
  const row = rows.get(Math.floor(y / STEP_Y)) || [];
  return row.find((box) => x >= box.x && x <= box.x + WIDTH && y >= box.y && y <= box.y + HEIGHT) || null;
}

let grip = null;
canvas.addEventListener("pointerdown", (event) => {
  grip = { x: event.clientX, y: event.clientY, moved: false };
  canvas.setPointerCapture(event.pointerId);
  canvas.classList.add("moving");
});
canvas.addEventListener("pointermove", (event) => {
  if (!grip) return tip(boxAt(event), event);
  const dx = event.clientX - grip.x, dy = event.clientY - grip.y;
  if (!grip.moved && Math.abs(dx) + Math.abs(dy) < 4) return;
  left -= dx / zoom;
  top_ -= dy / zoom;
  grip = { x: event.clientX, y: event.clientY, moved: true };
  isFitted = false;
  tip(null);
  queue();
});
canvas.addEventListener("pointerup", (event) => {
  if (grip && !grip.moved) select(boxAt(event));
  grip = null;
  canvas.classList.remove("moving");
});
canvas.addEventListener("pointerleave", () => tip(null));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const area = canvas.getBoundingClientRect();
  zoomAt(Math.exp(-event.deltaY * 0.0016), event.clientX - area.left, event.clientY - area.top);
}, { passive: false });
const zoomMiddle = (factor) => zoomAt(factor, canvas.clientWidth / 2, canvas.clientHeight / 2);
byId("in").addEventListener("click", () => zoomMiddle(1.4));
byId("out").addEventListener("click", () => zoomMiddle(1 / 1.4));
byId("fit").addEventListener("click", () => { fit(); queue(); });
addEventListener("resize", () => { if (isFitted) fit(); queue(); });
addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = 90 / zoom;
  const act = {
    "/": () => { byId("search").focus(); event.preventDefault(); },
    "+": () => zoomMiddle(1.4), "=": () => zoomMiddle(1.4), "-": () => zoomMiddle(1 / 1.4),
    "0": fit, "Escape": () => select(null),
    "ArrowLeft": () => { left -= step; }, "ArrowRight": () => { left += step; },
    "ArrowUp": () => { top_ -= step; }, "ArrowDown": () => { top_ += step; },
  }[event.key];
  if (act) {
    isFitted = isFitted && !event.key.startsWith("Arrow");
    act();
    queue();
  }
});

// ---- text

function element(tag, text, cls) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (cls) made.className = cls;
  return made;
}

// Columns whose head begins with # hold numbers.
function table(head, body, most = LISTED) {
  const made = element("table"), first = element("tr");
  head.forEach((name) => first.append(element("th", name.replace("#", ""), name.startsWith("#") ? "n" : "")));
  made.append(first);
  for (const { cells, cls } of body.slice(0, most)) {
    const row = element("tr", undefined, cls);
    cells.forEach((cell, i) => {
      const td = element("td", cell instanceof Node ? undefined : cell, head[i].startsWith("#") ? "n" : "");
      if (cell instanceof Node) td.append(cell);
      row.append(td);
    });
    made.append(row);
  }
  const holder = element("div");
  holder.append(made);
  if (body.length > most) holder.append(element("p", `and ${body.length - most} more`, "quiet"));
  return holder;
}

function link(box, text) {
  const made = element("a", text || box.title);
  made.addEventListener("click", () => { select(box); center(box); });
  return made;
}

function tip(box, event) {
  const tip = byId("tip");
  tip.hidden = !box;
  if (!box) return;
  const where = box.item ? ` on ${box.item.device}` : "";
  tip.replaceChildren(element("b", box.title + where), element("div", box.note, "quiet"));
  if (box.item && box.kind !== "store") tip.append(element("div", box.item.why));
  if (box.tensor) tip.append(element("div", `${box.tensor.shape}, ${bytes(box.tensor.bytes)}`));
  const area = byId("view").getBoundingClientRect();
  const x = Math.min(event.clientX - area.left + 14, area.width - tip.offsetWidth - 8);
  const y = Math.min(event.clientY - area.top + 14, area.height - tip.offsetHeight - 8);
  tip.style.left = Math.max(0, x) + "px";
  tip.style.top = Math.max(0, y) + "px";
}

function select(box) {
  selected = box;
  const into = byId("details");
  into.replaceChildren();
  if (!box) {
    into.append(element("p", "Click a box to see why it is where it is.", "quiet"));
  } else {
    into.append(element("h2", box.title));
    if (box.item) itemDetails(into, box.item);
    else into.append(element("p", `${box.tensor.shape}, ${bytes(box.tensor.bytes)}, ${box.note}`));
    tensorDetails(into, "reads", box.into, "from");
    tensorDetails(into, "gives", box.out, "to");
    into.parentElement.scrollTop = 0;
  }
  queue();
}

function itemDetails(into, item) {
  into.append(element("p", `on ${item.device}: ${item.why}`));
  if (item.next_best) {
    const { device, more_us, exact } = item.next_best;
    const more = more_us < 0 ? "less" : "more";
    const much = time(Math.abs(more_us));
    into.append(element("p", `on ${device} the run would take ${exact ? "" : "about "}${much} ${more}`));
  }
  if (item.measured_us !== null) {
    into.append(element("p", `predicted ${time(item.cost_us)}, measured ${time(item.measured_us)}`));
  }
  const candidates = item.candidates.map((candidate) => ({
    cells: [candidate.device, candidate.excluded ? "" : time(candidate.cost_us), candidate.known ? "in runs" : "", candidate.excluded || ""],
    cls: candidate.device === item.device ? "here" : "",
  }));
  into.append(element("h3", "candidates, by themselves"), table(["device", "#cost", "", "excluded because"], candidates));
  if (item.kind === "variable") return into.append(element("p", item.location, "quiet"));
  into.append(element("h3", item.family), element("code", item.kernel));
  into.append(element("p", `${item.flops} flops, ${bytes(item.bytes)} read and written; rule: ${item.rule}`, "quiet"));
  into.append(element("h3", counted(item.nodes.length, "node")), element("p", short(item.nodes.join(", "), 4000, false)));
  into.append(element("p", item.location, "quiet"));
}

function way(crossing) {
  return `${crossing.from} to ${crossing.to}${crossing.copy ? ", a copy" : ""}`;
}

function tensorDetails(into, head, some, end) {
  if (some.length === 0) return;
  const body = some.map((line) => ({ cells: [
    `${line.tensor.name} ${line.tensor.shape}`,
    bytes(line.tensor.bytes),
    link(line[end]),
    line.crossing ? `${way(line.crossing)}, ${time(line.crossing.predicted_us)}` : "",
  ] }));
  into.append(element("h3", head), table(["tensor", "#bytes", end, "crosses"], body));
}

function summary() {
  const into = byId("summary"), hasTimes = data.measured !== null;
  const moved = data.crossings.reduce((sum, crossing) => sum + crossing.bytes, 0);
  const kernels = data.items.filter((item) => item.kind !== "variable").length;
  let text = `${counted(kernels, "kernel")}, predicted ${time(data.predicted_us)}`;
  if (hasTimes) text += `, measured ${time(data.measured.wall_us)} (${counted(data.measured.runs, "run")}, kernels timed one by one)`;
  text += `; ${counted(data.crossings.length, "tensor")} of ${bytes(moved)} cross`;
  if (program !== null) text = `program ${program} of ${all.programs.length}: ${text}`;
  byId("totals").textContent = text;
  const timed = (head, cells) => hasTimes ? [head.concat("#measured"), cells] : [head, cells.map(({ cells }) => ({ cells: cells.slice(0, -1) }))];
  into.append(element("h2", "In all"));
  into.append(element("h3", "devices"), table(...timed(["device", "#items", "#compute", "#submitting"], data.devices.map((device) => (
    { cells: [device.name, device.items, time(device.compute_us), time(device.submission_us), time(device.measured_us)] })))));
  if (data.crossings.length > 0) {
    const at = new Map();
    lines.forEach((line) => { if (line.crossing && !at.has(line.crossing)) at.set(line.crossing, line.from); });
    const body = data.crossings.map((crossing) => ({ cells: [
      at.has(crossing) ? link(at.get(crossing), crossing.name) : crossing.name,
      way(crossing), bytes(crossing.bytes), time(crossing.predicted_us),
      crossing.measured_us === null ? "not told" : time(crossing.measured_us)] }));
    into.append(element("h3", "what crosses"), table(...timed(["tensor", "way", "#bytes", "#time"], body)));
  }
  into.append(element("h3", "memory of a run"), table(["device", "#planned", "#live at once"],
    data.memory.map((m) => ({ cells: [m.device, bytes(m.planned_bytes), bytes(m.live_bytes)] }))));
  const why = new Map();
  for (const node of data.absent) {
    if (!why.has(node.why)) why.set(node.why, []);
    why.get(node.why).push(node.name);
  }
  if (why.size > 0) {
    const body = [...why].map(([reason, names]) => {
      const cell = element("div", reason);
      cell.append(element("div", short(names.join(", "), 160, false), "quiet"));
      return { cells: [String(names.length), cell] };
    });
    into.append(element("h3", "needed nodes for which nothing runs"), table(["#nodes", "why"], body));
  }
  if (data.gaps.length > 0) {
    into.append(element("h3", "through memory from kernel to kernel"), table(["node", "#bytes", "why they are two"],
      data.gaps.map((gap) => ({ cells: [gap.node, bytes(gap.bytes), gap.why] })), 30));
  }
}

// ---- parts

function parts() {
  const section = element("section");
  section.id = "parts";
  section.append(element("h2", "Parts of the run"), steps(all.part));
  byId("details").before(section);
  // Another program is another drawing.
  addEventListener("hashchange", () => location.reload());
}

function steps(part) {
  const list = element("ol");
  for (const step of part.steps) {
    const entry = element("li");
    if (step.kind === "program") {
      const { unknown, predicted_us, measured } = all.programs[step.program];
      const name = `program ${step.program}`;
      if (unknown) {
        entry.append(element("b", name), element("span", `: ${unknown}`, "quiet"));
      } else {
        const here = step.program === program;
        const link = element(here ? "b" : "a", name);
        if (!here) link.href = `#program=${step.program}`;
        const took = measured ? `, measured ${time(measured.wall_us)} (${counted(measured.runs, "time")})` : "";
        entry.append(link, element("span", `: predicted ${time(predicted_us)}${took}`));
      }
    } else {
      entry.append(element("b", `${step.kind} ${step.name}`), element("span", trips(step)));
      entry.title = step.location;
    }
    for (const [verb, values] of [["takes", step.takes], ["gives", step.gives]]) {
      const text = values.map((value) => `${value.name} ${value.shape || "of a shape that only a run knows"}`).join(", ");
      if (text) entry.append(element("div", `${verb} ${short(text, 400, false)}`, "quiet"));
    }
    step.parts.forEach((part, i) => {
      if (step.kind === "branch") entry.append(element("div", part.steps.length > 0 ? `part ${i}` : `part ${i}: nothing runs`));
      if (part.steps.length > 0) entry.append(steps(part));
    });
    list.append(entry);
  }
  return list;
}

function trips(step) {
  if (step.kind === "branch") return `: one of ${counted(step.parts.length, "part")}`;
  if (step.kind !== "loop") return "";
  const { exactly, at_most } = step.trips, stays = step.stays;
  const each = stays ? stays.predicted_us : step.parts[0].predicted_us;
  const most = at_most === null ? "" : `, ${counted(at_most, "trip")} at most`;
  const often = exactly === null ? `until the data says so${most}` : counted(exactly, "trip");
  const n = stays ? stays.trips_a_program : null;
  const many = n === null ? "as many in a program as pay when the loop begins" : `${n} in a program`;
  const programs = n === 1 ? "each its own program" : many;
  const staying = stays ? `, ${programs}; what is carried stays on ${stays.on.join(", ")}` : "";
  return `: ${often}${each === null ? "" : `, ${time(each)} a trip`}${staying}`;
}

function legend() {
  const add = (text, color) => {
    const entry = element("span"), mark = element("i", undefined, color ? "" : "cross");
    if (color) mark.style.background = color;
    entry.append(mark, text);
    byId("legend").append(entry);
  };
  data.devices.forEach((device, i) => add(device.name, FILLS[i % FILLS.length]));
  add("fed, fetched, stored", "#ffffff");
  if (data.crossings.length > 0) add("crosses");
}

// ---- searching

function search(text) {
  const wanted = text.trim().toLowerCase(), list = byId("found");
  const hits = [];
  if (wanted) {
    for (const box of boxes) {
      const names = box.item ? box.item.nodes.concat(box.title) : [box.title];
      const name = names.find((name) => name.toLowerCase().includes(wanted));
      if (name !== undefined) hits.push({ box, name, exact: name.toLowerCase() === wanted });
      if (hits.length >= LISTED) break;
    }
    hits.sort((a, b) => b.exact - a.exact);
  }
  list.replaceChildren(...hits.map(({ box, name }, i) => {
    const entry = element("li", name === box.title ? name : `${name} \u2014 in ${box.title}`, i === 0 ? "first" : "");
    entry.addEventListener("click", () => { list.hidden = true; select(box); center(box); });
    return entry;
  }));
  if (wanted && hits.length === 0) list.replaceChildren(element("li", "no such node", "quiet"));
  list.hidden = !wanted;
  return hits;
}
byId("search").addEventListener("input", (event) => search(event.target.value));
byId("search").addEventListener("keydown", (event) => {
  if (event.key === "Escape") { event.target.value = ""; search(""); event.target.blur(); }
  if (event.key !== "Enter") return;
  const hits = search(event.target.value);
  byId("found").hidden = true;
  if (hits.length > 0) { select(hits[0].box); center(hits[0].box); }
});

// ---- the start

legend();
if (all.programs) parts();
summary();
fit();
const begun = performance.now();
const first = draw();
root.dataset.boxes = first.boxes;
root.dataset.lines = first.lines;
root.dataset.milliseconds = Math.round(performance.now() - begun);
// The address may name a node: page.html#matmul
if (address && !(all.programs && address.startsWith("program="))) {
  const hits = search(address);
  byId("found").hidden = true;
  if (hits.length > 0) { select(hits[0].box); center(hits[0].box); draw(); }
}
root.dataset.selected = selected ? selected.title : "";
