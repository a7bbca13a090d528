"use strict";
(() => {
  const PAGE = 12, AGAIN = 1000;
  const find = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text; // never innerHTML: texts are hostile
    return element;
  };
  let data = JSON.parse(find("data").textContent);

  // Figures

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const printed = matchMedia("print");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function themed(figure) {
    const axis = { gridcolor: colour("--line"), zeroline: false, linecolor: colour("--line"), automargin: true };
    const layout = {
      ...figure.layout,
      autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--fg"), size: 12, family: "system-ui, sans-serif" },
      margin: { l: 50, r: 8, t: 8, b: 40 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11 } },
      hovermode: "closest",
      hoverlabel: { namelength: 40 },
      xaxis: { ...figure.layout.xaxis, ...axis },
      yaxis: { ...figure.layout.yaxis, ...axis },
    };
    const seen = (value) => (value === "#000000" ? colour("--fg") : value); // black lines on a dark page
    const traces = figure.data.map((trace) => {
      const copy = { ...trace };
      if (trace.line) copy.line = { ...trace.line, color: seen(trace.line.color) };
      if (trace.error_y) copy.error_y = { ...trace.error_y, color: seen(trace.error_y.color) };
      if (trace.marker && trace.marker.color) copy.marker = { ...trace.marker, color: seen(trace.marker.color) };
      return copy;
    });
    if (touch.matches) layout.dragmode = false; // a finger scrolls the page
    return [traces, layout, { responsive: true, displayModeBar: false }];
  }

  function drawFigures() {
    const place = find("figures");
    const wanted = new Set(data.charts.map((chart) => `figure-${chart.id}`));
    for (const old of [...place.children]) if (!wanted.has(old.id)) old.remove();
    for (const chart of data.charts) {
      let figure = find(`figure-${chart.id}`);
      if (!figure) {
        figure = make("figure");
        figure.id = `figure-${chart.id}`;
        const plot = make("div", "plot");
        plot.setAttribute("role", "img");
        plot.setAttribute("aria-label", `${chart.title}. ${chart.caption}`);
        figure.append(make("h3", "", chart.title), plot, make("figcaption"));
        place.append(figure);
      }
      figure.querySelector("figcaption").textContent = chart.caption;
      const lines = chart.figure.data.length;
      figure.querySelector(".plot").style.height = `${lines > 3 ? 240 + 22 * lines : 270}px`; // room for the legend
      Plotly.react(figure.querySelector(".plot"), ...themed(chart.figure));
    }
  }

  // Samples

  const fields = ["text", "folder", "part", "round", "right", "min", "max"];
  const control = Object.fromEntries(fields.map((name) => [name, find(`f-${name}`)]));
  let shown = PAGE;
  let beside = null; // {folder, part, index} of the prompt that is laid out by rounds

  const number = (value) => (value === null || value === undefined ? "–" : Number(value).toPrecision(4));

  function options(select, values, all) {
    const before = select.value;
    select.replaceChildren();
    if (all) select.append(new Option(all, ""));
    for (const [value, text] of values) select.append(new Option(text, value));
    if ([...select.options].some((option) => option.value === before)) select.value = before;
    select.parentElement.hidden = values.length < 2;
  }

  function prepare() {
    const s = data.samples;
    find("samples").hidden = find("to-samples").hidden = s.round.length === 0;
    find("to-figures").hidden = data.charts.length === 0;
    const distinct = (values) => [...new Set(values)].sort((a, b) => a - b);
    options(control.folder, distinct(s.folder).map((i) => [i, s.folders[i]]), "all");
    options(control.part, [...new Set(s.part)].map((part) => [part, part]), "all");
    options(control.round, distinct(s.round).map((t) => [t, t]), "all");
    control.right.parentElement.hidden = !s.right.some((value) => value !== null);
    data.folded = s.texts.map((text) => text.toLowerCase());
  }

  function matching() {
    const s = data.samples;
    const text = control.text.value.toLowerCase();
    const hit = data.folded.map((one) => text === "" || one.includes(text));
    const [low, high] = [control.min, control.max].map((input) => (input.value === "" ? null : Number(input.value)));
    const rows = [];
    for (let i = 0; i < s.round.length; i++) {
      if (!hit[s.prompt[i]] && !hit[s.response[i]]) continue;
      if (control.folder.value !== "" && s.folder[i] !== Number(control.folder.value)) continue;
      if (control.part.value !== "" && s.part[i] !== control.part.value) continue;
      if (control.round.value !== "" && s.round[i] !== Number(control.round.value)) continue;
      if (control.right.value !== "" && s.right[i] !== Number(control.right.value)) continue;
      if (low !== null && !(s.reward[i] !== null && s.reward[i] >= low)) continue;
      if (high !== null && !(s.reward[i] !== null && s.reward[i] <= high)) continue;
      rows.push(i);
    }
    return rows;
  }

  function mark(i) {
    const right = data.samples.right[i];
    return right === null ? null : make("span", right ? "right" : "wrong", right ? "✓ right" : "✗ wrong");
  }

  function card(i) {
    const s = data.samples;
    const box = make("article", "sample");
    const meta = make("div", "meta");
    if (s.folders.length > 1) meta.append(make("span", "", s.folders[s.folder[i]]));
    meta.append(make("span", "", s.part[i] === "diagnosed" ? "sample" : `${s.part[i]}, round ${s.round[i]}`));
    meta.append(make("span", "", `reward ${number(s.reward[i])}`));
    if (s.log_prob[i] !== s.reward[i]) meta.append(make("span", "", `log-prob ${number(s.log_prob[i])}`));
    const right = mark(i);
    if (right) meta.append(right);
    const button = make("button", "", "All responses to this prompt");
    button.type = "button";
    button.addEventListener("click", () => {
      beside = { folder: s.folder[i], part: s.part[i], index: s.index[i] };
      drawBeside();
      find("beside").scrollIntoView({ block: "nearest" });
      find("beside").querySelector("button").focus();
    });
    meta.append(button);
    box.append(make("p", "asked", s.texts[s.prompt[i]]), make("p", "response", s.texts[s.response[i]] || "(empty)"), meta);
    return box;
  }

  // Below each of these log-probs a token is shaded more.
  const SHADES = [-0.1, -0.7, -2, -4];
  const shade = (value) => `p${SHADES.filter((edge) => value < edge).length}`;

  function response(i) {
    const s = data.samples;
    const text = s.texts[s.response[i]];
    const pieces = s.shades[i];
    if (!pieces) return make("p", "response", text || "(empty)");
    const box = make("p", "response");
    const letters = [...text]; // ends count characters, not UTF-16 units
    let start = 0;
    for (const [end, value] of pieces) {
      const last = end === start;
      const piece = make("span", shade(value), last ? "∎" : letters.slice(start, end).join(""));
      piece.title = `${last ? "end, " : ""}log-prob ${value.toFixed(2)}`;
      box.append(piece);
      start = end;
    }
    return box;
  }

  function legend() {
    const box = make("p", "quiet legend", "Log-prob of each token, in nats: ");
    const names = [`above ${SHADES[0]}`, ...SHADES.map((edge) => `below ${edge}`)];
    names.forEach((name, i) => box.append(make("span", `p${i}`, name.replace("-", "−"))));
    box.append("∎ is the end. Hover for the number.");
    return box;
  }

  // All responses to one prompt, a column a round, equal ones once.
  function drawBeside() {
    const place = find("beside");
    place.replaceChildren();
    place.hidden = beside === null;
    if (beside === null) return;
    const s = data.samples;
    const rounds = new Map();
    let prompt = "";
    for (let i = 0; i < s.round.length; i++) {
      if (s.folder[i] !== beside.folder || s.part[i] !== beside.part || s.index[i] !== beside.index) continue;
      prompt = s.texts[s.prompt[i]];
      if (!rounds.has(s.round[i])) rounds.set(s.round[i], new Map());
      const column = rounds.get(s.round[i]);
      column.set(s.response[i], [...(column.get(s.response[i]) || []), i]);
    }
    const close = make("button", "", "Close");
    close.type = "button";
    close.addEventListener("click", () => {
      beside = null;
      drawBeside();
    });
    const columns = make("div", "rounds");
    columns.tabIndex = 0;
    columns.setAttribute("role", "group");
    columns.setAttribute("aria-label", "Responses by round");
    const shaded = [...rounds.values()].some((column) => [...column.values()].flat().some((row) => s.shades[row]));
    for (const [round, responses] of [...rounds].sort((a, b) => a[0] - b[0])) {
      const column = make("div", "round");
      column.append(make("h3", "", beside.part === "diagnosed" ? "Samples" : `Round ${round}`));
      const ranked = [...responses].sort((a, b) => (s.log_prob[b[1][0]] ?? -Infinity) - (s.log_prob[a[1][0]] ?? -Infinity));
      for (const [, rows] of ranked) {
        const box = make("div", "sample");
        const meta = make("div", "meta");
        meta.append(make("span", "", `log-prob ${number(s.log_prob[rows[0]])}`));
        if (rows.length > 1) meta.append(make("span", "", `${rows.length} times`));
        const right = mark(rows[0]);
        if (right) meta.append(right);
        box.append(response(rows.find((row) => s.shades[row]) ?? rows[0]), meta);
        column.append(box);
      }
      columns.append(column);
    }
    place.append(close, make("p", "asked", prompt), ...(shaded ? [legend()] : []), columns);
  }

  function drawSamples() {
    const rows = matching();
    const held = data.samples.round.length;
    const left = data.samples.total > held ? `; the page holds ${held} of ${data.samples.total}, to prompts spread evenly` : "";
    find("count").textContent = `${rows.length} of ${held} samples${left}`;
    find("list").replaceChildren(...rows.slice(0, shown).map(card));
    find("more").hidden = rows.length <= shown;
  }

  function filtered() {
    shown = PAGE;
    drawSamples();
  }
  for (const kind of ["input", "change"]) find("filters").addEventListener(kind, filtered);
  find("filters").addEventListener("submit", (event) => event.preventDefault());
  find("filters").addEventListener("reset", () => setTimeout(filtered));
  find("more").addEventListener("click", () => {
    shown += 5 * PAGE;
    drawSamples();
  });

  // Watching: what the server rendered anew replaces what stands here; filters, scroll and open tables stay.

  function replaceHtml(id, html) {
    const place = find(id);
    const open = new Set([...place.querySelectorAll("details[open]")].map((one) => one.id));
    const known = new Set([...place.querySelectorAll("details")].map((one) => one.id));
    const fresh = new DOMParser().parseFromString(html, "text/html");
    for (const one of fresh.querySelectorAll("details")) if (known.has(one.id)) one.open = open.has(one.id);
    place.replaceChildren(...fresh.body.childNodes);
  }

  async function watch() {
    try {
      const answer = await fetch(`/data?version=${encodeURIComponent(data.version)}`, { cache: "no-store" });
      if (answer.status === 200) {
        const fresh = await answer.json();
        data = { ...fresh.data, version: fresh.version };
        replaceHtml("summary", fresh.summary);
        replaceHtml("details", fresh.details);
        draw();
        drawFigures();
      }
    } catch {
      // the server is gone, or comes back: what is here stays
    }
    setTimeout(watch, AGAIN);
  }

  function draw() {
    prepare();
    drawSamples();
    drawBeside();
  }

  // Samples need nothing but this script; Plotly, which is large, stands behind it.
  draw();
  document.addEventListener("DOMContentLoaded", () => {
    drawFigures();
    for (const query of [dark, printed]) query.addEventListener("change", drawFigures);
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
    if (data.version !== null) setTimeout(watch, AGAIN);
  });
})();
