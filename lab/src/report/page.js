"use strict";
// Filters rows by words and by kind, and opens what a link leads to. The page reads whole without it.
const words = document.getElementById("words");
const shown = document.getElementById("shown");

// What a row is known by: not its evidence, where every word stands somewhere.
function told(row) {
  return (row.id + " " + row.rows[0].textContent).toLowerCase();
}

// Each row has a link to itself.
for (const row of document.querySelectorAll("tbody.found")) {
  const link = document.createElement("a");
  Object.assign(link, { className: "link", href: "#" + row.id, textContent: "#", ariaLabel: "link to this row" });
  row.querySelector("th small:last-of-type").append(" ", link);
}

const scenarios = [...document.querySelectorAll("details.scenario")].map((details) => ({
  details,
  open: details.open,
  title: details.querySelector("summary").textContent.toLowerCase() + " " + details.id,
  rows: [...details.querySelectorAll("tbody.found")].map((row) => ({ row, text: told(row) })),
}));

function filter() {
  // The id of a cell, as a script prints it, is words too.
  const wanted = words.value.toLowerCase().split(/[\s/+-]+/).filter(Boolean);
  const kind = shown.value;
  const idle = !wanted.length && !kind;
  let found = 0, all = 0;
  for (const s of scenarios) {
    let here = 0;
    for (const { row, text } of s.rows) {
      const fits = wanted.every((w) => text.includes(w) || s.title.includes(w)) &&
        (!kind || row.hasAttribute("data-" + kind));
      row.hidden = !fits;
      here += fits;
    }
    all += s.rows.length;
    found += here;
    s.details.hidden = !idle && here === 0;
    s.details.open = idle ? s.open : here > 0;
  }
  document.getElementById("matches").textContent = idle ? "" : `${found} of ${all} rows`;
}

// A filter must not hide what a link leads to.
function reveal() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  if (target.closest("[hidden]")) {
    words.value = shown.value = "";
    filter();
  }
  for (let up = target; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
  target.scrollIntoView({ behavior: "instant" });
}

if (words) {
  document.getElementById("filter").hidden = false;
  words.addEventListener("input", filter);
  shown.addEventListener("change", filter);
}
addEventListener("hashchange", reveal);
reveal();
