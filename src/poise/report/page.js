"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const night = window.matchMedia("(prefers-color-scheme: dark)");
  let printing = false;

  // ---- figures: drawn when they come near the window, redrawn when the colours or the model change ----
  const PRINTED = 330; // pixels: half of the text width of an A4 or letter page
  const CONFIG = { displayModeBar: false, responsive: false, showTips: false };

  function coloured(value) {
    if (typeof value === "string") return data.dark[value] || value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, coloured(entry)]));
    }
    return value;
  }

  function draw(figure) {
    const spec = data.figures[`${figure.dataset.base}.${figure.dataset.column || 0}`];
    const plot = find(".plot", figure);
    figure.dataset.drawn = "1";
    plot.hidden = !spec;
    find(".not-run", figure).hidden = Boolean(spec);
    find(".figure-title", figure).textContent = spec ? spec.title : "";
    if (!spec) return;
    plot.setAttribute("aria-label", spec.alt);
    const shown = night.matches && !printing ? coloured(spec) : structuredClone(spec);
    shown.layout.width = printing ? PRINTED : plot.clientWidth;
    if (shown.layout.width < 420) {
      shown.layout.margin.l = 44;
      shown.data.filter((trace) => trace.textangle).forEach((trace) => { trace.textfont.size = 8; });
    }
    Plotly.react(plot, shown.data, shown.layout, CONFIG);
  }

  const figures = all(".figure[data-base]");
  const redraw = (only) => figures.filter((figure) => figure.dataset.drawn && (!only || only(figure))).forEach(draw);
  const waiting = figures.slice();

  function idle() {
    const next = waiting.shift();
    if (!next) {
      document.documentElement.dataset.ready = "1";
      return;
    }
    if (!next.dataset.drawn) draw(next);
    (window.requestIdleCallback || window.setTimeout)(idle);
  }

  if ("IntersectionObserver" in window) {
    const near = new IntersectionObserver((entries) => entries.forEach((entry) => {
      if (entry.isIntersecting && !entry.target.dataset.drawn) draw(entry.target);
    }), { rootMargin: "400px" });
    figures.forEach((figure) => near.observe(figure));
  }
  night.addEventListener("change", () => redraw());
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) { width = window.innerWidth; redraw(); }
  });
  const print = (on) => () => { printing = on; figures.forEach(draw); };
  window.addEventListener("beforeprint", print(true));
  window.addEventListener("afterprint", print(false));

  all("select[data-section]").forEach((select) => select.addEventListener("change", () => {
    all(".figure[data-base]", document.getElementById(select.dataset.section)).forEach((figure) => {
      figure.dataset.column = select.value;
      draw(figure);
    });
  }));

  // ---- at your threshold: whole numbers only, so that the counts are numpy's ----
  const decoded = new Map();

  function numbers(place) {
    if (!decoded.has(place)) {
      const entry = data.pool[place];
      if (typeof entry === "string") {
        const bytes = Uint8Array.from(atob(entry), (sign) => sign.charCodeAt(0));
        const values = new Int32Array(bytes.length / 3);
        for (let i = 0; i < values.length; i += 1) {
          values[i] = (bytes[3 * i] << 16) | (bytes[3 * i + 1] << 8) | bytes[3 * i + 2];
        }
        decoded.set(place, values);
      } else decoded.set(place, entry);
    }
    return decoded.get(place);
  }

  function counts(attack, attacked, at) {
    const code = numbers(attacked ? attack.ca : attack.cb);
    const prediction = numbers(attacked ? attack.pa : attack.pb);
    const label = numbers(attack.label);
    const found = { right: 0, wrong: 0, deferred: 0 };
    for (let i = 0; i < code.length; i += 1) {
      if (code[i] <= at) found.deferred += 1;
      else if (prediction[i] === label[i]) found.right += 1;
      else found.wrong += 1;
    }
    found.cost = expected(found, code.length) + (data.costs ? surcharge(code, prediction, label, at) : 0) / code.length;
    return found;
  }

  function expected(found, n) {
    if (!data.costs) return 0;
    const { wrong_accepted: wrong, deferred, right_accepted: right } = data.costs;
    return (found.wrong * wrong + found.deferred * deferred + found.right * right) / n;
  }

  // What cases of the classes with costs of their own cost more than others.
  function extra(what, label) {
    const own = data.costs.classes && data.costs.classes[label];
    return own ? own[what] - data.costs[what] : 0;
  }

  const outcome = (prediction, label) => (prediction === label ? "right_accepted" : "wrong_accepted");

  function surcharge(code, prediction, label, at) {
    if (!data.costs.classes) return 0;
    let total = 0;
    for (let i = 0; i < code.length; i += 1) {
      total += extra(code[i] <= at ? "deferred" : outcome(prediction[i], label[i]), label[i]);
    }
    return total;
  }

  // The cheapest threshold among all confidences, of equally cheap ones the highest; thresholds between two
  // neighbouring confidences cost the same, so the roundest of them is shown.
  function leastBad(attack) {
    const code = numbers(attack.ca), prediction = numbers(attack.pa), label = numbers(attack.label);
    const order = Array.from(code.keys()).sort((a, b) => code[b] - code[a]);
    const found = { right: 0, wrong: 0, deferred: code.length };
    let best = null, more = surcharge(code, prediction, label, data.grid);
    for (let k = 0; k <= order.length; k += 1) {
      const low = k < order.length ? code[order[k]] : Math.round((data.low * data.grid) / 1000);
      const high = k > 0 ? code[order[k - 1]] : data.grid + 1;
      if (low < high) {
        const cost = expected(found, code.length) + more / code.length;
        if (best === null || cost < best.cost) best = { low, high, cost };
      }
      if (k < order.length) {
        const i = order[k];
        found[prediction[i] === label[i] ? "right" : "wrong"] += 1;
        more += extra(outcome(prediction[i], label[i]), label[i]) - extra("deferred", label[i]);
        found.deferred -= 1;
      }
    }
    for (const step of [10000, 1000, 100, 10, 1]) {
      const round = Math.ceil(best.low / step) * step;
      if (round < best.high) return { threshold: round / data.grid, cost: best.cost };
    }
    return null;
  }

  const slider = find("#slider"), exact = find("#exact"), recipe = find("#pick-recipe"), column = find("#pick-column");
  const names = [...new Set(data.attacks.map((attack) => attack.recipe))];
  let at = Math.round(data.threshold * data.grid);
  let least = null;

  function option(select, text, value) {
    const entry = document.createElement("option");
    entry.textContent = text;
    entry.value = value;
    select.append(entry);
  }

  function offerColumns() {
    const before = column.selectedOptions[0] && column.selectedOptions[0].textContent;
    column.replaceChildren();
    data.attacks.forEach((attack, place) => {
      if (attack.recipe === recipe.value) option(column, attack.column, place);
    });
    const same = [...column.options].find((entry) => entry.textContent === before);
    if (same) column.value = same.value;
  }

  function perThousand(share) {
    const value = share * 1000;
    if (value === 0) return "0";
    return value < 9.95 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
  }

  const written = (threshold) => threshold.toFixed(6).replace(/0{1,4}$/, "");

  function signed(share) {
    const text = perThousand(Math.abs(share));
    return text === "0" ? "±0" : (share < 0 ? "−" : "+") + text;
  }

  function fill(row, found, n, write) {
    const line = find(`#counts tr[data-row=${row}]`);
    for (const name of ["right", "wrong", "deferred", "cost"]) {
      const cell = find(`[data-cell=${name}]`, line);
      if (!cell) continue;
      cell.textContent = write(name === "cost" ? found.cost : found[name] / n);
      cell.dataset.count = found[name];
    }
  }

  function update() {
    const attack = data.attacks[Number(column.value)];
    const n = numbers(attack.label).length;
    const clean = counts(attack, false, at), attacked = counts(attack, true, at);
    const change = Object.fromEntries(Object.keys(clean).map((name) => [name, attacked[name] - clean[name]]));
    fill("clean", clean, n, perThousand);
    fill("attacked", attacked, n, perThousand);
    fill("change", change, n, signed);
    for (const [name, found] of [["clean", clean], ["attacked", attacked]]) {
      all(".seg", find(`[data-bar=${name}]`)).forEach((segment) => {
        segment.style.width = `${(100 * found[segment.classList[1]]) / n}%`;
      });
    }
    const shown = written(at / data.grid);
    find("#counts-n").textContent = `, counted on ${n.toLocaleString("en")} image${n === 1 ? "" : "s"}; model: ${attack.column}`;
    find("#threshold-title").textContent = `At ${shown}, ${attack.recipe} takes the cases accepted from `
      + `${perThousand((clean.right + clean.wrong) / n)} to ${perThousand((attacked.right + attacked.wrong) / n)} per 1,000, `
      + `the wrong ones among them from ${perThousand(clean.wrong / n)} to ${perThousand(attacked.wrong / n)}.`;
    slider.setAttribute("aria-valuetext", shown);
    if (data.costs) {
      least = leastBad(attack);
      find("#least-bad").textContent = `Least bad under this attack: threshold ${written(least.threshold)}, `
        + `expected cost ${perThousand(least.cost)} per 1,000 cases.`;
      find("#least-bad").dataset.threshold = least.threshold;
    }
  }

  function moveTo(value, source) {
    if (!Number.isFinite(value)) return;
    at = Math.round(Math.min(Math.max(value, 0), 1) * data.grid);
    if (source !== slider) slider.value = String(Math.round((at * 1000) / data.grid));
    if (source !== exact) exact.value = String(at / data.grid);
    update();
  }

  names.forEach((name) => option(recipe, name, name));
  recipe.value = data.first;
  offerColumns();
  recipe.addEventListener("change", () => { offerColumns(); update(); });
  column.addEventListener("change", update);
  slider.addEventListener("input", () => moveTo(Number(slider.value) / 1000, slider));
  exact.addEventListener("input", () => moveTo(exact.value === "" ? NaN : Number(exact.value), exact));
  if (data.costs) find("#use-least-bad").addEventListener("click", () => moveTo(least.threshold));
  moveTo(data.threshold);

  // ---- scoreboard ----
  all("input[name=metric]").forEach((radio) => radio.addEventListener("change", () => {
    find("#metric-note").textContent = data.notes[radio.value];
    all("#board td[data-at]").forEach((cell) => {
      const [line, place] = cell.dataset.at.split(".").map(Number);
      const entry = (line < 0 ? data.clean[place] : data.cells[line][place])[radio.value];
      find(".num", cell).textContent = entry.text;
      if (find(".span", cell)) find(".span", cell).textContent = entry.interval;
      cell.style.setProperty("--shade", entry.shade);
    });
  }));

  // ---- download of every image's answers ----
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  find("#samples-csv").addEventListener("click", () => {
    const fields = ["id", "label", "pb", "pa", "cb", "ca", "q"];
    const lines = ["recipe,defence,view,id,label,prediction_before,prediction_after,confidence_before,confidence_after,queries"];
    for (const attack of data.attacks) {
      const lead = [attack.recipe, attack.defence, attack.view].map(quoted).join(",");
      const arrays = fields.map((name) => numbers(attack[name]));
      for (let i = 0; i < arrays[0].length; i += 1) {
        const cells = arrays.map((values, k) => (k === 4 || k === 5 ? (values[i] / data.grid).toFixed(6) : values[i]));
        lines.push(`${lead},${cells.join(",")}`);
      }
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }));
    link.download = "poise-images.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  idle();
})();
