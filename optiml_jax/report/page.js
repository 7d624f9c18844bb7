"use strict";
// What the pages share: elements, tables, tabs, the theme. The page puts its data into #data.
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const number = n => n.toLocaleString("en-US");
const words = text => text.replaceAll("_", " ");

// An element; all text of the data goes through textContent, never through HTML.
function element(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "line", "circle", "path", "text", "title"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// The first columns are text, the others numbers.
function table(columns, rows, text = 1) {
  const look = i => i < text ? {class: "text"} : {};
  return element("div", {class: "scroll"}, element("table", {},
    element("thead", {}, element("tr", {}, ...columns.map((c, i) => element("th", {scope: "col", ...look(i)}, c)))),
    element("tbody", {}, ...rows.map(row => element("tr", {}, ...row.map((cell, i) => element("td", look(i), cell)))))));
}

// The same with a filter, and with columns that sort: numbers as numbers, marks and brackets aside.
function sortable(columns, rows, text = 1) {
  const made = table(columns, rows, text), body = made.querySelector("tbody"), lines = [...body.rows];
  const value = (row, i) => {
    const cell = row.cells[i].textContent, n = parseFloat(cell.replace(/[<[,]/g, "").replace("−", "-"));
    return i < text || Number.isNaN(n) ? cell.toLowerCase() : n;
  };
  let sorted = null, sign = 1;
  [...made.querySelectorAll("th")].forEach((th, i) => {
    const sort = () => {
      sign = sorted === i ? -sign : i < text ? 1 : -1;  // numbers: the largest first
      sorted = i;
      const order = lines.map((row, n) => [value(row, i), n, row]).sort(([a, n], [b, m]) =>
        typeof a !== typeof b ? (typeof a === "number" ? -1 : 1) : a < b ? -sign : a > b ? sign : n - m);
      body.append(...order.map(([, , row]) => row));
      made.querySelectorAll("th").forEach((other, j) =>
        j === i ? other.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending") : other.removeAttribute("aria-sort"));
    };
    th.replaceChildren(element("button", {type: "button", onclick: sort}, columns[i]));
  });
  if (rows.length < 8) return made;
  const filter = element("input", {type: "search", class: "filter", placeholder: "filter rows", "aria-label": "filter rows",
    oninput: event => {
      const words = event.target.value.toLowerCase();
      for (const row of lines) row.hidden = !row.textContent.toLowerCase().includes(words);
    }});
  return element("div", {}, filter, made);
}

function notes(lines) {
  return element("ul", {class: "notes"}, ...lines.map(line => element("li", {}, line)));
}

// --- tabs: one section view-X for each button tab-X; the address says which is shown ---------------

const VIEWS = [...document.querySelectorAll("[role=tab]")].map(tab => tab.id.slice("tab-".length));

function go(view, more = "") { location.hash = view + (more ? "/" + encodeURIComponent(more) : ""); }

// Shows the view of the address, else the first; returns its name and what stands behind it.
function showTab() {
  const [view, more] = location.hash.slice(1).split(/\/(.*)/);
  const wanted = VIEWS.includes(view) && !at("tab-" + view).hidden ? view : VIEWS[0];
  for (const v of VIEWS) {
    at("view-" + v).hidden = v !== wanted;
    at("tab-" + v).setAttribute("aria-selected", v === wanted);
  }
  return [wanted, more];
}

for (const view of VIEWS) at("tab-" + view).addEventListener("click", () => go(view));
document.querySelector("[role=tablist]").addEventListener("keydown", event => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key], shown = VIEWS.filter(v => !at("tab-" + v).hidden);
  if (!step) return;
  const now = shown.findIndex(v => at("tab-" + v) === document.activeElement);
  const next = shown[(now + step + shown.length) % shown.length];
  at("tab-" + next).focus();
  go(next);
});

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  at("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

at("theme").addEventListener("click", () =>
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
document.title = document.querySelector("h1").textContent = data.title;
at("summary").textContent = data.summary;
