"use strict";
// What the page does by itself: theme, sliders through slices, the axis of curves, runs shown or hidden, saving CSV, and,
// while a run goes on, coming back to the same place after the page has loaded itself again.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const data = JSON.parse(document.getElementById("data").textContent);
  const store = {
    get(name) { try { return sessionStorage.getItem(name); } catch { return null; } },
    set(name, value) { try { sessionStorage.setItem(name, value); } catch { /* the browser keeps nothing for files */ } },
  };
  const figures = [];

  // Theme: that of the system until the button is pressed.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const themeButton = document.getElementById("theme");
  function showTheme() {
    themeButton.textContent = isDark() ? "Light page" : "Dark page";
    const [ink, rule] = isDark() ? ["#c9d0d6", "#39414a"] : ["#3a424a", "#e0e4e8"];
    for (const figure of figures) {
      figure.title.text_color = ink;
      for (const axis of [...figure.below, ...figure.left]) {
        axis.axis_label_text_color = axis.major_label_text_color = ink;
        axis.axis_line_color = axis.major_tick_line_color = ink;
      }
      for (const grid of figure.center) if ("grid_line_color" in grid) grid.grid_line_color = rule;
    }
  }
  if (store.get("theme")) document.documentElement.dataset.theme = store.get("theme");
  themeButton.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    store.set("theme", document.documentElement.dataset.theme);
    showTheme();
  });
  system.addEventListener("change", showTheme);

  // Slices of a case; all runs of a case show the same slice, or the nearest that they have.
  const numbersOf = (slider) => slider.dataset.slices.split(" ").map(Number);
  function showSlice(slider) {
    const words = `slice ${numbersOf(slider)[slider.value]} of ${slider.dataset.of}`;
    slider.closest(".case").style.setProperty("--slice", slider.value);
    slider.parentElement.querySelector("output").textContent = words;
    slider.setAttribute("aria-valuetext", words);
  }
  function showSlices(article, leader) {
    const number = numbersOf(leader)[leader.value];
    for (const slider of all(".slices input", article)) {
      if (slider !== leader) {
        const away = numbersOf(slider).map((each) => Math.abs(each - number));
        slider.value = away.indexOf(Math.min(...away));
      }
      showSlice(slider);
    }
  }
  for (const article of all("article")) {
    const sliders = all(".slices input", article);
    for (const slider of sliders) {
      slider.value = slider.getAttribute("value"); // browsers keep the place of a slider when a page is loaded again
      slider.addEventListener("input", () => showSlices(article, slider));
    }
    if (sliders.length) showSlices(article, sliders[0]);
  }

  // Curves: the axis, and which runs are shown.
  const chosenAxis = () => (document.querySelector("input[name=over]:checked") || { value: "step" }).value;
  const hidden = () => new Set(all("input[name=shown]:not(:checked)").map((box) => Number(box.value)));
  function showCurves() {
    const over = chosenAxis(), off = hidden();
    for (const still of all(".still[data-over]")) still.hidden = still.dataset.over !== over;
    for (const figure of figures) {
      figure.below[0].axis_label = data.over[over];
      const filled = new Set();
      for (const renderer of figure.renderers) {
        const [group, panel, place] = renderer.tags, line = data.curves[panel].lines[place];
        renderer.visible = over in line.over && !off.has(group);
        if (!(over in line.over) || filled.has(renderer.data_source)) continue;
        filled.add(renderer.data_source);
        const none = line.y.map(() => NaN), run = line.y.map(() => line.label);
        const places = { step: line.over.step, seconds: line.over.seconds || none, joules: line.over.joules || none };
        const band = { low: line.low.length ? line.low : none, high: line.high.length ? line.high : none };
        renderer.data_source.data = { x: line.over[over], y: line.y, run, ...places, ...band };
      }
      for (const view of Object.values(Bokeh.index.roots ? Bokeh.index.roots : Bokeh.index))
        if (view.model === figure && view.reset) view.reset();
    }
    store.set("over", over);
    store.set("off", [...off].join(" "));
  }
  const kept = document.querySelector(`input[name=over][value="${CSS.escape(store.get("over") || "step")}"]`);
  if (kept && !kept.disabled) kept.checked = true;
  const off = (store.get("off") || "").split(" ").filter(Boolean);
  for (const box of all("input[name=shown]")) if (off.includes(box.value)) box.checked = false;
  for (const input of all("input[name=over], input[name=shown]")) input.addEventListener("change", showCurves);

  async function drawCurves() {
    const items = document.getElementById("plots");
    if (items && window.Bokeh) {
      Bokeh.set_log_level("error"); // it warns of curves without points, which come a moment later
      for (const item of JSON.parse(items.textContent)) await Bokeh.embed.embed_item(item);
      for (const each of Bokeh.documents) figures.push(...each.roots());
      if (matchMedia("(pointer: fine)").matches)
        for (const figure of figures)
          for (const tool of figure.toolbar.tools) if (tool.type === "BoxZoomTool") tool.active = true;
    }
    showTheme();
    showCurves();
    document.documentElement.dataset.ready = "yes";
  }

  // CSV of what the page holds.
  const quoted = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  function curveRows() {
    const rows = [];
    for (const panel of data.curves)
      for (const line of panel.lines)
        line.y.forEach((y, i) => rows.push([panel.task, line.run, panel.key, line.validation ? "validation" : "training",
          line.over.step?.[i], line.over.seconds?.[i], line.over.joules?.[i], y, line.low[i], line.high[i]]));
    return { heads: ["task", "run", "curve", "of", "step", "minutes", "joules", "mean", "low", "high"], rows };
  }
  for (const button of all("button[data-csv]"))
    button.addEventListener("click", () => {
      const table = button.dataset.csv === "curves" ? curveRows() : data.tables[button.dataset.csv];
      const text = [table.heads, ...table.rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n";
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      link.download = `${button.dataset.csv}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });

  // The place on the page, where it loads itself again.
  const folds = all("details");
  if (data.watched) {
    const opened = (store.get("open") || "").split(" ").filter(Boolean).map(Number);
    for (const number of opened) if (folds[number]) folds[number].open = true;
    addEventListener("pagehide", () => {
      store.set("scroll", String(scrollY));
      store.set("open", folds.map((fold, number) => (fold.open ? number : "")).filter((each) => each !== "").join(" "));
    });
  }
  drawCurves().then(() => {
    if (data.watched && store.get("scroll")) scrollTo(0, Number(store.get("scroll")));
  });
})();
