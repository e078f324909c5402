"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const find = (id) => document.getElementById(id);
  const status = find("shown");
  const number = (text) => (text === "" || Number.isNaN(Number(text)) ? null : Number(text));

  // ---- sorting: figures as numbers, what is undefined last in either direction ----
  function compare(one, other, down) {
    if (one === "" || other === "") return (one === "") - (other === "");
    const [a, b] = [number(one), number(other)];
    const order = a === null || b === null ? one.localeCompare(other) : a - b;
    return down ? -order : order;
  }

  function sort(table, column) {
    const heads = all("thead th", table);
    const down = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.children[column].dataset.value;
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b), down)));
    status.textContent = `Sorted by ${heads[column].textContent.trim()}, ${down ? "descending" : "ascending"}.`;
  }

  all("table.ranking").forEach((table) => all("thead th", table).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent.trim();
    button.addEventListener("click", () => sort(table, column));
    head.replaceChildren(button);
  }));

  // ---- filters ----
  function filter() {
    const [data, threat, defence] = ["data", "threat", "defence"].map((id) => find(id).value);
    const words = find("text").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    let total = 0;
    all(".group").forEach((group) => {
      const fits = (!data || group.dataset.data === data) && (!threat || group.dataset.threat === threat);
      const rows = all("tbody tr", group);
      const seen = rows.filter((row) => {
        const text = row.textContent.toLowerCase();
        row.hidden = !(fits && (!defence || row.dataset.defence === defence) && words.every((word) => text.includes(word)));
        return !row.hidden;
      });
      group.hidden = seen.length === 0;
      shown += seen.length;
      total += rows.length;
    });
    status.textContent = `${shown} of ${total} entries shown.`;
  }

  const form = find("filters");
  form.hidden = false;
  ["input", "change"].forEach((kind) => form.addEventListener(kind, filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
  document.documentElement.dataset.ready = "1";
})();
