// Sorts and filters tables, opens the call that an address names, and goes from failure to failure by key.
"use strict";

function sortable(table) {
  const body = table.tBodies[0];
  const original = Array.from(body.rows);
  Array.from(table.tHead.rows[0].cells).forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sort(table, body, original, head, index));
  });
}

function sort(table, body, original, head, index) {
  const first = head.dataset.first || "ascending";
  const second = first === "ascending" ? "descending" : "ascending";
  const next = { none: first, [first]: second, [second]: "none" }[head.getAttribute("aria-sort")];
  for (const other of table.tHead.rows[0].cells) {
    other.setAttribute("aria-sort", other === head ? next : "none");
  }
  if (next === "none") {
    body.append(...original);
    return;
  }
  const sign = next === "ascending" ? 1 : -1;
  const keyed = original.map((row) => ({ row, key: key(row.cells[index], head.classList.contains("num")) }));
  // What has no value stays last, whichever way.
  keyed.sort((a, b) => (a.key === null) - (b.key === null) || (a.key === null ? 0 : sign * compare(a.key, b.key)));
  body.append(...keyed.map((entry) => entry.row));
}

function key(cell, numeric) {
  if (!cell) return null;
  const text = cell.dataset.v === undefined ? cell.textContent.trim() : cell.dataset.v;
  if (!numeric) return text;
  const value = parseFloat(text);
  return Number.isNaN(value) ? null : value;
}

function compare(a, b) {
  return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
}

function filterable(form) {
  const table = document.getElementById(form.dataset.table);
  const rows = Array.from(table.tBodies[0].rows);
  const texts = new Map();
  const controls = Array.from(form.querySelectorAll("[data-key]"));
  const apply = () => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = !controls.every((control) => control.value === "" || matches(row, control, texts));
      shown += !row.hidden;
    }
    form.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
  };
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
}

function matches(row, control, texts) {
  const wanted = control.value;
  if (control.dataset.key === "") {
    if (!texts.has(row)) texts.set(row, row.textContent.toLowerCase());
    return texts.get(row).includes(wanted.toLowerCase());
  }
  const cell = Array.from(row.cells).find((entry) => entry.dataset.key === control.dataset.key);
  if (!cell) return false;
  if (cell.dataset.v !== undefined) return cell.dataset.v === wanted;
  return cell.textContent.split(", ").includes(wanted);
}

function openTarget() {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") {
    target.open = true;
    target.scrollIntoView();
  }
}

const KEYS = { j: "next", ArrowRight: "next", k: "prev", ArrowLeft: "prev" };

function step(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  // Where something scrolls or takes text, the keys are its own.
  if (event.target.closest("input, select, textarea, .scroll, pre")) return;
  const link = KEYS[event.key] && document.querySelector(`a[rel="${KEYS[event.key]}"]`);
  if (link) link.click();
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("form.filters").forEach(filterable);
window.addEventListener("hashchange", openTarget);
document.addEventListener("keydown", step);
openTarget();
