// The claims page's filter. Its state is in the address after the #, so that a selection can be linked, and all claims
// are shown where scripts are off. A link to one claim (#claim-…) shows all and goes there.
function filterClaims(list) {
  const claims = [...list.querySelectorAll(".claim")];
  const labels = JSON.parse(list.dataset.claimFilter);
  const verdictOf = (claim) => claim.querySelector("[data-verdict]").dataset.verdict;
  const saidBy = (claim) => claim.dataset.said.split(" ");
  const isSlip = (claim) => claim.querySelector(".slip") !== null;
  const words = new Map(claims.map((claim) => [claim, claim.textContent.toLowerCase()]));
  const counted = (label, test) => `${label} (${claims.filter(test).length})`;

  function add(parent, tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    parent.append(element);
    return element;
  }

  function addBox(parent, name, value, label) {
    const field = add(parent, "label");
    add(field, "input", { type: "checkbox", name, value });
    field.append(` ${label}`);
  }

  function addSelect(name, label, test) {
    const select = add(add(form, "label", {}, label), "select", { name });
    add(select, "option", { value: "" }, `all (${claims.length})`);
    for (const [value, text] of Object.entries(labels)) {
      const fits = (claim) => test(claim, value);
      if (claims.some(fits)) add(select, "option", { value }, counted(text, fits));
    }
  }

  const form = document.createElement("form");
  form.className = "claim-filter";
  form.ariaLabel = "Filter the claims";
  form.role = "search";
  const verdicts = add(form, "fieldset", {}, add(form, "legend", {}, "Verdict"));
  for (const value of ["holds", "conditional", "fails", "untested"]) {
    const first = claims.find((claim) => verdictOf(claim) === value);
    if (!first) continue;
    const name = first.querySelector("[data-verdict]").textContent;
    addBox(verdicts, "verdict", value, counted(name, (claim) => verdictOf(claim) === value));
  }
  addSelect("said", "Said by", (claim, value) => saidBy(claim).includes(value));
  addSelect("chapter", "Chapter", (claim, value) => claim.dataset.chapter === value);
  add(add(form, "label", {}, "Words"), "input", { type: "search", name: "words", autocomplete: "off" });
  addBox(form, "slips", "only", counted("slips only", isSlip));
  add(form, "button", { type: "reset" }, "Show all");
  const status = add(form, "p", { role: "status" });

  function apply() {
    const asked = new FormData(form);
    const wanted = asked.get("words").toLowerCase().split(/\s+/);
    for (const claim of claims)
      claim.hidden = !(
        (!asked.has("verdict") || asked.getAll("verdict").includes(verdictOf(claim))) &&
        (!asked.get("said") || saidBy(claim).includes(asked.get("said"))) &&
        (!asked.get("chapter") || claim.dataset.chapter === asked.get("chapter")) &&
        (!asked.has("slips") || isSlip(claim)) &&
        wanted.every((word) => words.get(claim).includes(word))
      );
    status.textContent = `${claims.filter((claim) => !claim.hidden).length} of ${claims.length} claims shown`;
  }

  function toAddress() {
    const asked = [...new FormData(form)].filter(([, value]) => value);
    const state = new URLSearchParams(asked).toString();
    history.replaceState(null, "", location.href.split("#")[0] + (state && `#${state}`));
    apply();
  }

  function fromAddress() {
    const state = new URLSearchParams(location.hash.slice(1));
    for (const control of form.elements)
      if (control.type === "checkbox") control.checked = state.getAll(control.name).includes(control.value);
      else if (control.name) control.value = state.get(control.name) ?? "";
    apply();
    document.getElementById(location.hash.slice(1))?.scrollIntoView();
  }

  form.addEventListener("input", toAddress);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(toAddress)); // once the controls have been reset
  window.addEventListener("hashchange", fromAddress);
  list.prepend(form);
  fromAddress();
}

document.addEventListener("DOMContentLoaded", () =>
  document.querySelectorAll("[data-claim-filter]").forEach(filterClaims),
);
