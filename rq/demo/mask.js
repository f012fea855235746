// Copyright 2026 The rq Authors.
// SPDX-License-Identifier: Apache-2.0
//
// Marks cells of a grid over an image, by dragging. The value is {image, columns, cells},
// of which cells is a string of 0 and 1, row by row; the value is read when the pointer
// is lifted, so that nothing is drawn anew while it moves.

let painting = null; // what cells become: "1" or "0"

const cellAt = (event) => {
  const found = document.elementFromPoint(event.clientX, event.clientY);
  return found && element.contains(found) ? found.closest(".rq-cells b") : null;
};
const paint = (cell) => {
  if (cell) cell.classList.toggle("on", painting === "1");
};
const finish = () => {
  if (painting === null) return;
  painting = null;
  const cells = [...element.querySelectorAll(".rq-cells b")];
  const marks = cells.map((cell) => (cell.classList.contains("on") ? "1" : "0"));
  props.value = { ...props.value, cells: marks.join("") };
};

element.addEventListener("pointerdown", (event) => {
  const cell = cellAt(event);
  if (!cell) return;
  event.preventDefault();
  painting = cell.classList.contains("on") ? "0" : "1";
  paint(cell);
});
window.addEventListener("pointermove", (event) => {
  if (painting === null) return;
  const between = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  for (const one of [...between, event]) paint(cellAt(one));
});
window.addEventListener("pointerup", finish);
window.addEventListener("pointercancel", finish);
