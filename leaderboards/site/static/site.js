// Sorts and filters tables, keeps both in the address, opens the call that an address names, copies, and goes from
// failure to failure by key.
"use strict";

// The state of a page stands behind "#", as NAME=VALUE pairs; an anchor has no "=".
const state = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");

function remember(name, value, otherwise = "") {
  if (value === otherwise) state.delete(name);
  else state.set(name, value);
  history.replaceState(null, "", state.size ? `#${state}` : location.pathname + location.search);
}

function sortable(table) {
  const body = table.tBodies[0];
  const original = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const form = document.querySelector(`form.filters[data-table="${table.id}"]`);
  const select = form && form.querySelector("select.sort");

  const sort = (index, order) => {
    heads.forEach((head, i) => head.setAttribute("aria-sort", i === index ? order : "none"));
    if (select) select.value = order === "none" ? "" : `${index} ${order}`;
    body.append(...(order === "none" ? original : sorted(original, heads[index], index, order)));
    if (form) remember("sort", order === "none" ? "" : `${heads[index].dataset.name} ${order}`);
  };

  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    const first = head.dataset.first || "ascending";
    const second = first === "ascending" ? "descending" : "ascending";
    button.addEventListener("click", () => {
      sort(index, { none: first, [first]: second, [second]: "none" }[head.getAttribute("aria-sort")]);
    });
    if (select && !head.classList.contains("minor")) {
      for (const order of [first, second]) {
        const arrow = order === "ascending" ? "up" : "down";
        select.append(new Option(`${head.dataset.name}, ${arrow}`, `${index} ${order}`));
      }
    }
  });
  if (!select) return;
  select.addEventListener("change", () => {
    const [index, order] = select.value.split(" ");
    sort(Number(index), order || "none");
  });
  const [name, order] = (state.get("sort") || "").split(" ");
  const index = heads.findIndex((head) => head.dataset.name === name);
  if (index >= 0 && (order === "ascending" || order === "descending")) sort(index, order);
}

function sorted(rows, head, index, order) {
  const sign = order === "ascending" ? 1 : -1;
  const keyed = rows.map((row) => ({ row, key: key(row.cells[index], head.classList.contains("num")) }));
  // What has no value stays last, whichever way.
  keyed.sort((a, b) => (a.key === null) - (b.key === null) || (a.key === null ? 0 : sign * compare(a.key, b.key)));
  return keyed.map((entry) => entry.row);
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
  const named = (control) => control.dataset.param || control.dataset.key;
  const otherwise = new Map(controls.map((control) => [control, control.value]));
  for (const control of controls) {
    const value = state.get(named(control));
    // A select takes no value that is not one of its own, and is then empty.
    if (value !== null) control.value = value;
    if (control.selectedIndex === -1) control.value = otherwise.get(control);
  }
  const apply = () => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = !controls.every((control) => control.value === "" || matches(row, control, texts));
      shown += !row.hidden;
    }
    form.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
  };
  form.hidden = false;
  form.addEventListener("input", (event) => {
    if (controls.includes(event.target)) {
      remember(named(event.target), event.target.value, otherwise.get(event.target));
    }
    apply();
  });
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
  return Boolean(cell) && cell.dataset.v === wanted;
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

function copyable(button) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    const text = source.tagName === "SCRIPT" ? JSON.stringify(JSON.parse(source.textContent), null, 2) : source.textContent;
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      button.textContent = "the browser does not allow it";
    }
    setTimeout(() => { button.textContent = label; }, 2000);
  });
}

// On a small screen the numbers come first; what was chosen stays in sight.
if (matchMedia("(max-width: 40rem)").matches && !state.size) {
  document.querySelectorAll("details.choose").forEach((details) => { details.open = false; });
}
// Filters read the state of the address before sorting writes it.
document.querySelectorAll("form.filters").forEach(filterable);
document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("button.copy").forEach(copyable);
window.addEventListener("hashchange", openTarget);
document.addEventListener("keydown", step);
openTarget();
