"use strict";
// Renders /openapi.json, and sends requests by it.

const METHODS = ["get", "post", "put", "delete"];

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// `code` in a text is all the Markdown that the descriptions use.
function prose(text = "", tag = "p") {
  const parts = text.replaceAll("``", "`").split("`");
  return make(tag, {}, ...parts.map((part, at) => at % 2 ? make("code", {textContent: part}) : part));
}

const headers = () => {
  const token = sessionStorage.getItem("token");
  return token ? {Authorization: `Bearer ${token}`} : {};
};

function resolve(api, schema) {
  if (!schema?.$ref) return schema || {};
  return schema.$ref.slice(2).split("/").reduce((node, key) => node[key], api);
}

// An example of a schema: its own, or one put together from its properties.
function example(api, schema, depth = 0) {
  const found = resolve(api, schema);
  if (found.example !== undefined) return found.example;
  if (found.examples?.length) return found.examples[0];
  if (found.const !== undefined) return found.const;
  if (found.default !== undefined && found.default !== null) return found.default;
  if (found.enum) return found.enum[0];
  if (found.anyOf) return example(api, found.anyOf[0], depth);
  if (found.type === "array") return depth < 6 ? [example(api, found.items, depth + 1)] : [];
  if (found.type === "object") return Object.fromEntries(Object.entries(found.properties || {})
    .map(([name, one]) => [name, example(api, one, depth + 1)]));
  return {integer: 0, number: 0, boolean: false, string: "…"}[found.type] ?? null;
}

function shown(api, media) {
  const first = media.examples && Object.values(media.examples)[0];
  const value = first ? first.value : media.example ?? (media.schema?.format === "binary" ? null : example(api, media.schema));
  if (value === null || typeof value === "string") return value || "";
  // lists of bare values stay on one line
  return JSON.stringify(value, null, 2).replace(/\[[^[\]{}]*\]/g, (list) => list.replace(/\s+/g, " "));
}

function table(rows) {
  return make("table", {}, ...rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, cell)))));
}

function contents(api, content = {}) {
  return Object.entries(content).map(([kind, media]) => {
    const text = shown(api, media);
    return make("div", {}, make("code", {textContent: kind}), media.schema?.description ? prose(`: ${media.schema.description}`, "span") : "",
      ...(text ? [make("pre", {textContent: text})] : []));
  });
}

function operation(api, path, method, one) {
  const known = one.parameters || [];
  const rows = known.map((parameter) => [make("code", {textContent: parameter.name}), parameter.in, prose(parameter.description, "span")]);
  const answers = Object.entries(one.responses).sort();
  const part = (title, ...nodes) => nodes.length ? [make("h3", {textContent: title}), ...nodes] : [];
  const body = make("div", {}, prose(one.description),
    ...part("Parameters", ...(rows.length ? [table(rows)] : [])),
    ...part("Body", ...contents(api, one.requestBody?.content)),
    ...part("Answers", table(answers.map(([status, answer]) => [make("code", {textContent: status}), prose(answer.description, "span")])),
      ...contents(api, one.responses["200"]?.content)),
    ...part("Try it", trial(api, path, method, one, known)));
  const node = make("details", {id: one.operationId}, make("summary", {},
    make("span", {className: "method", textContent: method.toUpperCase()}), make("code", {textContent: path}),
    make("span", {className: "soft", textContent: one.summary})), body);
  return node;
}

function trial(api, path, method, one, known) {
  const fields = known.filter((parameter) => parameter.in === "path").map((parameter) => make("input",
    {type: "text", name: parameter.name, placeholder: parameter.name, required: true}));
  const content = one.requestBody?.content || {};
  const area = one.requestBody ? make("textarea", {value: content["application/json"] ? shown(api, content["application/json"]) : "", spellcheck: false}) : null;
  const file = Object.keys(content).some((kind) => kind.startsWith("image")) ? make("input", {type: "file"}) : null;
  for (const field of [...fields, area, file]) field?.setAttribute("aria-label", field.name || (field === file ? "file" : "body"));
  const answer = make("pre", {hidden: true});
  const form = make("form", {}, ...fields, ...[area, file].filter(Boolean), make("button", {textContent: "Send"}));
  form.className = "give";
  form.onsubmit = async (submit) => {
    submit.preventDefault();
    const url = fields.reduce((at, field) => at.replace(`{${field.name}}`, encodeURIComponent(field.value)), path);
    const sent = file?.files[0] || area?.value || undefined;
    answer.hidden = false;
    answer.textContent = "…";
    try {
      const got = await fetch(url, {method: method.toUpperCase(), body: sent, headers: headers()});
      const text = await got.text();
      let tidy = text;
      try { tidy = JSON.stringify(JSON.parse(text), null, 2); } catch { /* no JSON: as it came */ }
      answer.textContent = `${got.status} ${got.statusText}\n${tidy.slice(0, 20000)}`;
    } catch (error) {
      answer.textContent = `no answer: ${error.message}`;
    }
  };
  return make("div", {}, form, answer);
}

(async () => {
  const answer = await fetch("/openapi.json", {headers: headers()});
  const api = await answer.json();
  if (!answer.ok) throw new Error(api.error);
  document.getElementById("version").textContent = api.info.version;
  document.getElementById("about").replaceWith(Object.assign(prose(api.info.description), {className: "card"}));
  for (const tag of api.tags) {
    const section = make("section", {className: "card"}, make("h2", {textContent: tag.name}), prose(tag.description));
    for (const [path, methods] of Object.entries(api.paths))
      for (const method of METHODS)
        if (methods[method]?.tags?.includes(tag.name)) section.append(operation(api, path, method, methods[method]));
    document.getElementById("tags").append(section);
  }
  if (location.hash) document.getElementById(location.hash.slice(1))?.setAttribute("open", "");
})().catch((error) => {
  document.getElementById("tags").prepend(make("p", {className: "bad", textContent: `openapi.json: ${error.message}`}));
});
