"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
let language = 0;
const word = (key) => (data.words[key] || [key, key])[language];

// All texts of models and data go through textContent: nothing of them is ever read as HTML.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  for (const child of children) made.append(child);
  return made;
}

function picture(name) {
  const address = data.thumbnails[name];
  if (!address) return element("span", { class: "gone" }, word("missing_picture"));
  return element("img", { src: address, loading: "lazy", alt: "" });
}

function pictures(names) {
  const box = element("div", { class: names.length > 1 ? "frames many" : "frames" });
  for (const name of names) box.append(picture(name));
  return box;
}

// --- texts that lie beside the page ---------------------------------------------------------------
const chunks = {};
const waiting = {};
window.reportTexts = (number, texts) => {
  chunks[number] = texts;
  for (const call of waiting[number] || []) call();
  delete waiting[number];
};
function textsOf(item, index, call) {
  if (item.texts) return item.texts;
  const number = Math.floor(index / data.chunk);
  if (chunks[number]) return chunks[number][index % data.chunk];
  if (!waiting[number]) {
    waiting[number] = [];
    document.head.append(element("script", { src: `${data.folder}/texts-${number}.js` }));
  }
  waiting[number].push(call);
  return null;
}

// --- a list with filters, and the entry that is shown ---------------------------------------------
const PAGE = 200;
class Browser {
  constructor(prefix, entries, show, fits, title) {
    Object.assign(this, { prefix, entries, show, fits, title, found: [], at: 0 });
    this.list = $(`${prefix}-list`);
    this.detail = $(`${prefix}-detail`);
    for (const control of document.querySelectorAll(`#${prefix} .filters input, #${prefix} .filters select`))
      control.addEventListener("input", () => this.filter());
    $(`${prefix}-next`).addEventListener("click", () => this.go(1));
    $(`${prefix}-previous`).addEventListener("click", () => this.go(-1));
    this.filter();
  }
  filter() {
    this.found = [];
    this.entries.forEach((entry, index) => { if (this.fits(entry)) this.found.push(index); });
    this.at = 0;
    this.draw();
  }
  go(step) {
    const next = Math.min(Math.max(this.at + step, 0), this.found.length - 1);
    if (next !== this.at && next >= 0) { this.at = next; this.draw(); }
  }
  draw() {
    const start = Math.floor(this.at / PAGE) * PAGE;
    this.list.replaceChildren();
    for (let place = start; place < Math.min(start + PAGE, this.found.length); place++) {
      const button = element("button", { type: "button", "aria-current": place === this.at },
        this.title(this.entries[this.found[place]]));
      button.addEventListener("click", () => { this.at = place; this.draw(); });
      this.list.append(button);
    }
    const current = this.list.querySelector("[aria-current=true]");
    // Of the list alone: scrollIntoView would move the page as well.
    if (current) this.list.scrollTop = current.offsetTop - this.list.clientHeight / 2;
    $(`${this.prefix}-count`).textContent =
      this.found.length ? `${this.at + 1} ${word("of")} ${this.found.length}` : "0";
    this.detail.replaceChildren();
    if (!this.found.length) this.detail.append(word("nothing"));
    else this.show(this.detail, this.entries[this.found[this.at]], this.found[this.at]);
  }
}

function scoreTable(found, first) {
  const table = element("table");
  const count = Math.max(...found.scores.map((scores) => scores.length));
  found.scores.forEach((scores, side) => {
    const line = element("tr", {}, element("th", {}, `${word("candidate")} ${side ? 3 - first : first}`));
    for (let n = 0; n < count; n++) line.append(element("td", {}, scores[n] || ""));
    line.append(element("th", {}, `${word("total")} ${found.totals[side]}`));
    if (!found.adds_up[side]) line.append(element("td", { class: "wrong" }, word("does_not_add_up")));
    table.append(line);
  });
  return element("div", { class: "scroll" }, table);
}

function showText(text) {
  const head = element("header", {},
    element("b", {}, data.models[text.model]), ` ${text.order} #${text.sample} `,
    `${word("candidate")} ${text.first}: ${word("shown_first")} `,
    element("span", { class: text.result === "right" ? "right" : "wrong" },
      text.pick ? `${word("names")} ${text.pick} (${word("result_" + text.result)})` : word("result_none")),
    ` ${text.coherence}`);
  const box = element("article", { class: "text" }, head);
  if (text.scores) box.append(scoreTable(text.scores, text.first));
  box.append(element("pre", {}, text.text));
  return box;
}

// Comparisons without a name have their key, of 64 digits.
const short = (name) => (/^[0-9a-f]{64}$/.test(name) ? name.slice(0, 12) : name);

function showItem(box, item, index) {
  box.append(element("h3", {}, short(item.name)), element("p", { class: "note" }, item.group),
    element("pre", {}, item.text));
  if (item.context.length) box.append(element("p", { class: "note" }, word("context")), pictures(item.context));
  const sides = element("div", { class: "sides" });
  item.sides.forEach((side, place) => {
    const isBetter = item.better === place + 1;
    const label = `${word("candidate")} ${place + 1}` + (isBetter ? ` (${word("better")})` : "");
    sides.append(element("div", { class: isBetter ? "side better" : "side" }, element("p", { class: "note" }, label),
      Array.isArray(side) ? pictures(side) : element("pre", {}, side)));
  });
  box.append(sides);
  if (!item.better) box.append(element("p", { class: "note" }, word("tie")));
  const texts = textsOf(item, index, () => { if (items && items.found[items.at] === index) items.draw(); });
  if (!texts) return box.append(word("loading"));
  const wanted = $("items-model").value;
  const grid = element("div", { class: "texts" });
  for (const text of texts)
    if (wanted === "" || text.model === Number(wanted)) grid.append(showText(text));
  box.append(grid);
}

const has = (text, wanted) => text.toLowerCase().includes(wanted);
function fitsItem(item) {
  const wanted = $("items-search").value.trim().toLowerCase();
  const group = $("items-group").value, kind = $("items-result").value, model = $("items-model").value;
  if (wanted && !has(item.text, wanted) && !has(item.name, wanted)) return false;
  if (group && item.group !== group) return false;
  if ($("items-disagree").checked && !item.disagree) return false;
  const models = model === "" ? data.models.map((_, number) => number) : [Number(model)];
  if ($("items-flips").checked && !models.some((number) => item.flips[number])) return false;
  return !kind || models.some((number) => item.results[number].includes(kind));
}

function marked(parts) {
  const box = element("pre");
  for (const [text, differs] of parts) box.append(differs ? element("mark", {}, text) : text);
  return box;
}

function showPair(box, pair) {
  box.append(element("h3", {}, `#${pair.name} ${pair.order}`), pictures(pair.images), element("pre", {}, pair.prompt),
    element("div", { class: "pair" },
      element("div", {}, element("p", { class: "right" }, `${word("chosen")} (${pair.answer})`), marked(pair.chosen)),
      element("div", {}, element("p", { class: "wrong" }, word("rejected")), marked(pair.rejected))));
}

function fitsPair(pair) {
  const wanted = $("pairs-search").value.trim().toLowerCase();
  if (!wanted) return true;
  return [pair.prompt, ...[...pair.chosen, ...pair.rejected].map(([text]) => text)].some((text) => has(text, wanted));
}

let items = null, pairs = null, last = null;
if ($("items")) items = last = new Browser("items", data.items, showItem, fitsItem, (item) => `${short(item.name)}  ${item.text}`.slice(0, 120));
if ($("pairs")) {
  pairs = new Browser("pairs", data.pairs, showPair, fitsPair, (pair) => `#${pair.name}  ${pair.prompt.trim().split("\n").pop()}`.slice(0, 120));
  last = last || pairs;
}
for (const [name, browser] of [["items", items], ["pairs", pairs]])
  if (browser) $(name).addEventListener("pointerdown", () => { last = browser; });

document.addEventListener("keydown", (event) => {
  const inField = event.target.matches("input, select, textarea");
  if (event.key === "Escape" && inField) return event.target.blur();
  if (inField || !last || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
  if (step) { last.go(step); event.preventDefault(); }
  if (event.key === "/") { $(`${last.prefix}-search`).focus(); event.preventDefault(); }
});

function speak(number) {
  language = number;
  document.documentElement.lang = number ? "zh" : "en";
  for (const shown of document.querySelectorAll("[data-word]")) shown.textContent = word(shown.dataset.word);
  for (const field of document.querySelectorAll("[data-placeholder]")) field.placeholder = word(field.dataset.placeholder);
  for (const browser of [items, pairs]) if (browser) browser.draw();
}
$("language").addEventListener("click", () => speak(1 - language));
speak((navigator.language || "").startsWith("zh") ? 1 : 0);
