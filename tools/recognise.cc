#include "recognise.h"

#include <algorithm>
#include <filesystem>

#include "../data/file.h"
#include "../models/vit.h"

namespace pupil {
namespace {

// The file has every parameter of the network, in its shape, and nothing else.
bool holds_all_of(const nn::Store& plan, const std::map<std::string, Shape>& file) {
  size_t found = 0;
  for (const nn::Param& p : plan.params()) {
    auto at = file.find(p.name);
    bool counter = p.buffer && p.value.rank() == 0;  // may be missing
    if (at == file.end() && !counter) return false;
    if (at == file.end()) continue;
    if (at->second != p.value.shape()) return false;
    found++;
  }
  return found == file.size();
}

// What a network's file looks like from afar. Counters and the classifier may be missing in it.
struct Outline {
  std::string name, head;
  size_t least, most;  // tensors
};

const std::vector<Outline>& outlines() {
  static const std::vector<Outline> all = [] {
    std::vector<Outline> list;
    for (const models::ModelInfo& info : models::list_models()) {
      if (info.name.find_first_of("(+") != info.name.npos) continue;  // not one network
      nn::Store plan = nn::Store::blueprint();
      std::string head = models::make_model(info.name, nn::Scope(plan)).head;
      size_t least = 0;
      for (const nn::Param& p : plan.params())
        least += !(p.buffer && p.value.rank() == 0) && !p.name.starts_with(head);
      list.push_back({info.name, head + ".weight", least, plan.params().size()});
    }
    return list;
  }();
  return all;
}

std::string squeezed(const std::string& text) {  // lower-case letters and digits alone
  std::string out;
  for (char c : text)
    if (std::isalnum(uint8_t(c))) out += char(std::tolower(uint8_t(c)));
  return out;
}

}  // namespace

std::string recognise(const data::Weights& weights) {
  std::map<std::string, Shape> file;
  for (const data::TensorInfo& info : weights.list()) file.emplace(info.name, info.shape);
  if (auto said = weights.metadata().find("model"); said != weights.metadata().end()) {
    try {
      nn::Store plan = nn::Store::blueprint();
      models::make_model(said->second, nn::Scope(plan));
      return said->second;
    } catch (const InputError&) {  // a description in words
    }
  }
  std::vector<std::string> fitting;
  std::vector<std::shared_ptr<const models::VitConfig>> towers;  // of those
  for (const Outline& outline : outlines()) {
    if (file.size() < outline.least || file.size() > outline.most) continue;
    models::Options options;
    auto at = file.find(outline.head);
    options.classes = at == file.end() || !at->second.rank ? 0 : at->second[0];
    nn::Store plan = nn::Store::blueprint();
    models::Model model = models::make_model(outline.name, nn::Scope(plan), options);
    if (!holds_all_of(plan, file)) continue;
    fitting.push_back(outline.name);
    towers.push_back(model.vit);
  }
  std::string path = data::printable(weights.path());
  if (fitting.empty())
    fail_input("weights: ", path, " holds the parameters of no network that is known here; ",
               "say which it is (`pupil models` lists the names)");
  std::string in_name = squeezed(std::filesystem::path(weights.path()).filename().string());
  for (const std::string& name : fitting)
    if (in_name.find("tf" + squeezed(name.substr(0, name.find('.')))) != std::string::npos)
      fail_input("weights: ", path, " seems to be of timm's tf_", name.substr(0, name.find('.')),
                 ", whose padding is TensorFlow's; Pupil has it without");
  if (fitting.size() == 1) return fitting[0];
  // They differ only in what images must look like, which the file says.
  if (weights.metadata().count("input") &&
      std::all_of(towers.begin(), towers.end(),
                  [&](const auto& vit) { return vit && towers[0] && *vit == *towers[0]; }))
    return fitting[0];
  std::string best, list;
  for (const std::string& name : fitting) {
    list += concat(list.empty() ? "" : ", ", name);
    bool openai = weights.container().find("TorchScript") != std::string::npos &&
                  name.ends_with("-quickgelu");
    bool named = in_name.find(squeezed(name)) != std::string::npos;
    if ((named && name.size() > best.size()) || (openai && best.empty())) best = name;
  }
  if (best.empty())
    fail_input("weights: ", path, " fits several networks: ", list, "; say which it is");
  return best;
}

}  // namespace pupil
