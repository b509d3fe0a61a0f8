"use strict";
// Filters the rows of all tables: words are searched for in a row's text and in the names of its nodes, which are
// folded there. Without script, the page shows everything.
const names = JSON.parse(document.getElementById("names").textContent);
const rows = Array.from(document.querySelectorAll("tr[data-n]"), (row) => ({
  row,
  text: row.textContent.toLowerCase(),
  nodes: row.dataset.n.split(",").filter(Boolean).map((part) => part.split("-").map(Number)),
}));
const field = (id) => document.getElementById(id);

function matches(entry, words, wanted, severity, source) {
  const { row } = entry;
  if (severity && row.dataset.severity !== undefined && row.dataset.severity !== severity) return false;
  if (source && row.dataset.source !== undefined && row.dataset.source !== source) return false;
  return words.every((word, number) => entry.text.includes(word) ||
    entry.nodes.some(([first, last = first]) => {
      for (let index = first; index <= last; index++) if (wanted[number][index]) return true;
      return false;
    }));
}

function filter() {
  const words = field("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = words.map((word) => names.map((name) => name.includes(word)));
  const shown = {};
  for (const entry of rows) {
    const visible = matches(entry, words, wanted, field("severity").value, field("source").value);
    entry.row.hidden = !visible;
    const table = entry.row.closest("table").id;
    shown[table] = (shown[table] || 0) + visible;
  }
  field("shown").textContent = `shown: findings ${shown.findings || 0}, rows of nodes ${shown.nodes || 0}`;
}

field("filter").hidden = false;
for (const id of ["search", "severity", "source"]) field(id).addEventListener("input", filter);
field("filter").addEventListener("reset", () => setTimeout(filter));
field("filter").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/INPUT|SELECT/.test(document.activeElement.tagName)) {
    event.preventDefault();
    field("search").focus();
  }
});
filter();
