"use strict";
// The browsable table. Text from the run is only ever set as textContent.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = [["reference", "Reference"], ["sft", "SFT"], ["ppo", "PPO"], ["dpo", "DPO"]];
  const names = all.filter(([n]) => data.rows.some((row) => row.s[n]));
  const main = names.some(([n]) => n === "ppo") ? "ppo" : "dpo";
  const perPage = window.innerWidth < 600 ? 10 : 20;
  const at = (id) => document.getElementById(id);
  const inputs = ["search", "subreddit", "split", "temperature", "won", "sort"].map((n) => at("f-" + n));
  let page = 0;

  const el = (tag, kind, text) => {
    const node = document.createElement(tag);
    if (kind) node.className = kind;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const fill = (select, all, values, before = "") => {
    select.append(new Option(all, ""));
    for (const v of [...new Set(values)]) select.append(new Option(before + v, String(v)));
    select.hidden = select.options.length < 3;
  };
  fill(at("f-subreddit"), "any subreddit", data.posts.map((p) => p.subreddit).filter(Boolean).sort());
  fill(at("f-split"), "all splits", data.posts.map((p) => p.split));
  const temperatures = data.rows.map((r) => r.t).filter((t) => t !== null);
  fill(at("f-temperature"), "any temperature", temperatures, "T ");
  if (temperatures.length) at("f-temperature").value = String(temperatures[0]);

  for (const row of data.rows) {
    const post = data.posts[row.p];
    const texts = names.map(([n]) => (row.s[n] ? row.s[n].text : ""));
    row.find = [post.id, post.title, post.post, ...texts].join("\n").toLowerCase();
  }
  const score = (row, name) => (row.s[name] ? row.s[name].score : null);
  const gain = (row) => (score(row, main) ?? 0) - (score(row, "sft") ?? 0);
  const tokens = (row) => (row.s[main] ? row.s[main].tokens : 0);
  const orders = { gain: (a, b) => gain(b) - gain(a), loss: (a, b) => gain(a) - gain(b), long: (a, b) => tokens(b) - tokens(a) };

  const happened = (row, what) => {
    if (what.endsWith("!")) {
      const s = row.s[what.slice(0, -1)];
      return Boolean(s && s.wrong.length);
    }
    const tie = what.includes("=");
    const [a, b] = what.split(tie ? "=" : ">").map((n) => score(row, n));
    if (a === null || b === null) return false;
    return tie ? a === b : a > b;
  };
  const chosen = () => {
    const [search, subreddit, split, temperature, won, sort] = inputs.map((i) => i.value);
    const words = search.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = data.rows.filter((row) => {
      const post = data.posts[row.p];
      return (!subreddit || post.subreddit === subreddit) && (!split || post.split === split) &&
        (!temperature || String(row.t) === temperature) && (!won || happened(row, won)) &&
        words.every((w) => row.find.includes(w));
    });
    return sort ? rows.sort(orders[sort]) : rows;
  };

  const summary = (row, name, title) => {
    const s = row.s[name];
    const box = el("div", "summary " + name);
    const head = el("h5", "", title);
    const best = s.score !== null && names.every(([n]) => score(row, n) === null || s.score >= score(row, n));
    const numbers = [];
    if (s.score !== null) numbers.push((best ? "★ " : "") + s.score.toFixed(2));
    if (s.proxy !== null && s.proxy !== Math.round(s.score * 1000) / 1000) numbers.push("RM " + s.proxy.toFixed(2));
    if (s.tokens != null) numbers.push(s.tokens + " tokens");
    head.append(el("span", "", numbers.join(" · ")));
    const chips = el("p", "chips");
    for (const fact of s.wrong) chips.append(el("span", "chip wrong", "✗ " + fact));
    for (const fact of s.covered) chips.append(el("span", "chip covered", "✓ " + fact));
    box.append(head, el("p", "text", s.text), chips);
    return box;
  };
  const draw = (row) => {
    const post = data.posts[row.p];
    const box = el("article", "row");
    box.append(el("h4", "", post.title || post.id));
    const place = [post.subreddit && "r/" + post.subreddit, post.split, row.t !== null && "T " + row.t, post.id];
    box.append(el("p", "muted", place.filter(Boolean).join(" · ")));
    const more = el("details");
    const flat = post.post.replace(/\s+/g, " ");
    more.append(el("summary", "", flat.length > 110 ? flat.slice(0, 110) + "…" : flat));
    more.append(el("p", "text", post.post));
    const trio = el("div", "trio");
    for (const [name, title] of names) if (row.s[name]) trio.append(summary(row, name, title));
    box.append(more, trio);
    return box;
  };
  const show = () => {
    const rows = chosen();
    const pages = Math.max(1, Math.ceil(rows.length / perPage));
    page = Math.min(Math.max(page, 0), pages - 1);
    at("rows").replaceChildren(...rows.slice(page * perPage, (page + 1) * perPage).map(draw));
    const cut = data.total > data.rows.length ? ` (the first of ${data.total} in table.jsonl)` : "";
    at("count").textContent = `${rows.length} of ${data.rows.length} rows${cut}; ★ is the judge's highest score`;
    at("where").textContent = `${page + 1} / ${pages}`;
    at("prev").disabled = page === 0;
    at("next").disabled = page === pages - 1;
  };
  const turn = (by) => { page += by; show(); at("posts").scrollIntoView(); };
  at("prev").onclick = () => turn(-1);
  at("next").onclick = () => turn(1);
  for (const input of inputs) input.oninput = () => { page = 0; show(); };
  show();
})();
