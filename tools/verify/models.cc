#include "models.h"

namespace pupil::verify {
namespace {

std::string without(const std::string& name, std::string_view end) {
  return name.ends_with(end) ? name.substr(0, name.size() - end.size()) : name;
}

}  // namespace

void finish(Case& c, nn::Store& store) {
  for (const nn::Param& p : store.params()) {
    if (p.buffer)
      c.result("state." + p.name, p.value);
    else
      c.track(p.name, p.value);
  }
}

void run_network(Case& c, const std::function<models::Model(const nn::Scope&)>& make,
                 const std::string& prefix) {
  nn::Store store(0, c.dtype(), c.device());
  store.source(c.parameters());
  models::Model model = make(nn::Scope(store));
  store.require_complete();
  std::vector<std::pair<std::string, std::string>> values;  // of the case, and their taps
  std::vector<std::string> wanted{"pooled", "features"};
  for (const std::string& name : c.names("out." + prefix)) {
    std::string tap = without(without(name, ".mean_c"), ".mean_hw");
    if (prefix.empty() && (tap == "logits" || tap == "pooled" || tap.starts_with("state.")))
      continue;
    values.emplace_back(name, tap);
    wanted.push_back(tap);
  }
  nn::Taps taps(wanted);
  models::Output out = model.forward(c.get("in.x"), {c.flag("train", false), nullptr, &taps});
  c.result("logits", out.logits);
  c.result("pooled", taps["pooled"]);
  c.result("pre_logits", out.features);
  if (c.has("out.features")) c.result("features", taps["features"]);
  finish(c, store);
  for (auto& [name, tap] : values) {
    Tensor map = taps[tap];
    c.result(prefix + name, name == tap                  ? map
                            : name.ends_with(".mean_hw") ? mean(map, {2, 3})
                                                         : mean(map, {1}));
  }
}

}  // namespace pupil::verify
