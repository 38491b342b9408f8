"use strict";
// What a mark says, beside the pointer or the focused mark.
const tip = document.getElementById("tip");
function show(mark, x, y) {
  tip.textContent = mark.dataset.tip;
  tip.style.visibility = "visible";
  const box = tip.getBoundingClientRect();
  const left = Math.min(x + 14, innerWidth - box.width - 8);
  const top = y - box.height - 12 > 0 ? y - box.height - 12 : y + 18;
  tip.style.transform = `translate(${Math.max(8, left)}px, ${top}px)`;
}
function hide() { tip.style.visibility = "hidden"; }
for (const mark of document.querySelectorAll("[data-tip]")) {
  mark.addEventListener("pointermove", (event) => show(mark, event.clientX, event.clientY));
  mark.addEventListener("pointerleave", hide);
  mark.addEventListener("focus", () => {
    const box = mark.getBoundingClientRect();
    show(mark, box.right, box.top);
  });
  mark.addEventListener("blur", hide);
}
for (const time of document.querySelectorAll("time[data-unix-ms]")) {
  time.textContent = new Date(Number(time.dataset.unixMs)).toLocaleString();
}
