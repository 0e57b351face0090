// Uses the page as a person would, and notes what it showed.
{
  const at = (box) => {
    const area = canvas.getBoundingClientRect();
    return { clientX: area.left + (box.x + WIDTH / 2 - left) * zoom, clientY: area.top + (box.y + HEIGHT / 2 - top_) * zoom,
      pointerId: 1, bubbles: true };
  };
  canvas.setPointerCapture = () => {};
  const send = (type, init) => canvas.dispatchEvent(new PointerEvent(type, init));
  const shown = [];
  const box = boxes.find((box) => box.kind === "kernel");
  fit();
  send("pointermove", at(box));
  shown.push(byId("tip").textContent.includes(box.item.why));
  send("pointerdown", at(box));
  send("pointerup", at(box));
  shown.push(selected === box && byId("details").textContent.includes(box.item.why));
  // A drag moves the drawing and chooses nothing.
  const before = left, grip = at(box);
  send("pointerdown", grip);
  send("pointermove", { ...grip, clientX: grip.clientX + 60 });
  send("pointerup", { ...grip, clientX: grip.clientX + 60 });
  shown.push(Math.abs(before - left - 60 / zoom) < 1e-6 && selected === box);
  // The wheel keeps what is under the pointer where it is, to the pixels that its events have.
  const fixed = at(box), was = zoom;
  canvas.dispatchEvent(new WheelEvent("wheel", { ...fixed, deltaY: -300, cancelable: true }));
  shown.push(zoom > was && Math.abs(at(box).clientX - fixed.clientX) < 2);
  const field = byId("search"), key = (name) => new KeyboardEvent("keydown", { key: name, bubbles: true });
  field.value = "no such name";
  field.dispatchEvent(new Event("input"));
  shown.push(byId("found").textContent === "no such node");
  field.value = boxes[0].title;
  field.dispatchEvent(new Event("input"));
  field.dispatchEvent(key("Enter"));
  shown.push(selected === boxes[0] && byId("found").hidden);
  for (const name of ["+", "-", "ArrowLeft", "0", "Escape"]) canvas.dispatchEvent(key(name));
  shown.push(selected === null);
  draw();
  root.dataset.driven = shown.map(Number).join("");
}
