#include "identify.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <set>

#include "../data/file.h"
#include "../methods/method.h"
#include "verify/case.h"

namespace pupil {
namespace {

using Json = nlohmann::ordered_json;
using Names = std::map<std::string, std::string>;

constexpr int64_t kTries = 40000;  // of one function

// The values that are tried beside an attribute's default: of one function ("kd.hinton/T"), else of
// every function that reads an attribute of this name. Attributes that are not here keep their
// default.
const std::map<std::string, std::vector<Json>>& grids() {
  static const std::map<std::string, std::vector<Json>> all = [] {
    std::map<std::string, std::vector<Json>> g;
    for (double t : {0.05, 0.07, 0.1, 0.5}) g["temperature"].push_back(t);
    for (int t = 1; t <= 20; t++) g["temperature"].push_back(t);
    g["tau"] = g["base_temperature"] = {0.5, 1, 2, 3, 4, 5, 6, 8, 10};
    g["reduction"] = {"batchmean", "mean", "sum", "torchdistill", "cls_kd", "mse_of_probs"};
    g["logit_standardization"] = {true, false};
    for (int i = 0; i <= 10; i++) g["kd.hinton/alpha"].push_back(i / 10.0);
    g["label_smoothing"] = {0.05, 0.1, 0.2, 0.3};
    g["kernel"] = {"linear", "rbf"};
    g["map"] = {"diag", "dense", "product"};
    g["aft.objective/beta"] = {0.1, 0.3, 1, 3, 10, 30, 100};
    g["variant"] = {"code", "paper"};
    g["type"] = {"hard", "soft"};
    return g;
  }();
  return all;
}

// Adapters that are no loss of a batch: whole runs, networks, single operations.
bool is_loss(const std::string& function) {
  std::string group = function.substr(0, function.find('.'));
  if (group != "aft" && group != "kd" && group != "transmiter") return false;
  for (const char* word : {"trajectory", "schedule", "evaluate", "gather", "_fit", "train_step"})
    if (function.find(word) != std::string::npos) return false;
  return true;
}

bool is_integer(const std::string& dtype) { return dtype[0] != 'F' && dtype != "BF16"; }

// Our adapters read integers as labels and as positions.
bool wants_integer(const std::string& name) {
  for (const char* word : {"label", "index", "idx"})
    if (name.find(word) != std::string::npos) return true;
  return false;
}

// The words of a name, with those that mean the same made equal: "in.logits_s" -> student logits.
std::set<std::string> words_of(const std::string& name) {
  static const std::map<std::string, std::string> meaning = {
      {"s", "student"},   {"stu", "student"},   {"phi", "student"},      {"t", "teacher"},
      {"tea", "teacher"}, {"psi", "teacher"},   {"logit", "logits"},     {"out", "logits"},
      {"y", "labels"},    {"label", "labels"},  {"target", "labels"},    {"targets", "labels"},
      {"f", "features"},  {"feat", "features"}, {"feature", "features"}, {"w", "weight"},
      {"b", "bias"}};
  std::set<std::string> words;
  std::string word;
  for (char c : name + ".") {
    if (std::isalpha(static_cast<unsigned char>(c))) {
      word += char(std::tolower(static_cast<unsigned char>(c)));
      continue;
    }
    if (word.empty() || word == "in" || word == "param") {
      word.clear();
      continue;
    }
    auto known = meaning.find(word);
    words.insert(known == meaning.end() ? word : known->second);
    word.clear();
  }
  return words;
}

int similarity(const std::string& ours, const std::string& theirs) {
  if (theirs == ours || ours == "in." + theirs || ours == "param." + theirs) return 100;
  std::set<std::string> a = words_of(ours), b = words_of(theirs);
  int shared = 0;
  for (const std::string& word : a) shared += int(b.count(word));
  return 2 * shared - int(b.size());
}

// What the person exported.
struct Export {
  std::shared_ptr<const data::Weights> file;
  std::vector<data::TensorInfo> inputs;
  Names gradients;  // input -> name of its gradient
  std::string loss_name;
  double loss = 0, tolerance = 0;
  Json attributes = Json::object();

  explicit Export(const std::string& path) : file(data::open_safetensors(path)) {
    std::string attrs = "{}";
    if (auto at = file->metadata().find("attrs"); at != file->metadata().end()) attrs = at->second;
    attributes = Json::parse(attrs, nullptr, false);
    if (!attributes.is_object()) fail_input("identify: ", path, ": attrs is not a JSON object");
    for (const char* name : {"out.loss", "loss"})
      if (loss_name.empty() && file->has(name)) loss_name = name;
    if (loss_name.empty()) fail_input("identify: ", path, " has no tensor out.loss");
    for (const data::TensorInfo& info : file->list()) {
      if (info.name == loss_name) {
        if (info.shape.numel() != 1)
          fail_input("identify: ", path, ": ", loss_name, " must be one number, not ", info.shape);
        loss = file->read(loss_name, DType::f64).item();
        if (!std::isfinite(loss)) fail_input("identify: ", path, ": the loss is not finite");
        tolerance = tolerance_of(info.dtype);
      } else if (!info.name.starts_with("out.") && !info.name.starts_with("grad.") &&
                 !info.name.starts_with("cot.")) {
        inputs.push_back(info);
      }
      for (double v : file->read(info.name, DType::f64).values())
        if (!std::isfinite(v) && !info.name.starts_with("out."))
          fail_input("identify: ", path, ": ", data::printable(info.name), " is not finite");
    }
    if (inputs.empty())
      fail_input("identify: ", path, " has no inputs: every tensor but out.*, grad.* and loss");
    for (const data::TensorInfo& info : inputs) {
      std::string bare = info.name.substr(info.name.starts_with("in.") ? 3 : 0);
      for (const std::string& name : {"grad." + info.name, "grad." + bare})
        if (file->has(name)) gradients[info.name] = name;
    }
  }

  // Of a number that other code computed in this type, relative.
  static double tolerance_of(const std::string& dtype) {
    return dtype == "F64" ? 1e-7 : dtype == "F32" ? 2e-5 : 2e-2;
  }
};

// The exported tensors under our names, as a case of one function.
class Renamed : public data::Weights {
 public:
  Renamed(const Export& from, const std::string& function, const Names& inputs,
          const Json& attributes)
      : file_(from.file) {
    metadata_ = {{"format", "pupil-case-1"}, {"fn", function}, {"attrs", attributes.dump()}};
    for (const data::TensorInfo& info : from.inputs)
      for (auto& [ours, theirs] : inputs) {
        if (theirs != info.name) continue;
        add(ours, theirs, info);
        auto gradient = from.gradients.find(theirs);
        if (gradient != from.gradients.end()) add("grad." + ours, gradient->second, info);
      }
  }
  const std::vector<data::TensorInfo>& list() const override { return list_; }
  bool has(std::string_view name) const override { return names_.count(std::string(name)) > 0; }
  Tensor view(std::string_view name, DType dtype) const override {
    return file_->view(names_.at(std::string(name)), dtype);
  }
  std::span<const uint8_t> bytes(std::string_view name) const override {
    return file_->bytes(names_.at(std::string(name)));
  }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }
  const std::string& path() const override { return file_->path(); }
  std::string hash() const override { return file_->hash(); }

 private:
  void add(const std::string& ours, const std::string& theirs, const data::TensorInfo& info) {
    list_.push_back({ours, info.shape, info.dtype});
    names_[ours] = theirs;
  }
  std::shared_ptr<const data::Weights> file_;
  std::vector<data::TensorInfo> list_;
  Names names_;
  std::map<std::string, std::string> metadata_;
};

// Tries one function: what its adapter asks for decides what is tried next, so that an adapter
// needs no declaration of its inputs and attributes.
class Search {
 public:
  Search(const Export& from, const std::string& function, verify::Adapter adapter)
      : from_(from), function_(function), adapter_(adapter) {}

  std::vector<Guess> guesses;
  int64_t tries = 0;
  bool stopped = false;

  void go() {
    State own_names{{}, from_.attributes, {}};  // a case that only lost its function's name
    for (const data::TensorInfo& info : from_.inputs) {
      bool ours = info.name.starts_with("in.") || info.name.starts_with("param.");
      own_names.inputs[(ours ? "" : "in.") + info.name] = info.name;
    }
    explore(own_names);
    bool found = std::any_of(guesses.begin(), guesses.end(),
                             [](const Guess& g) { return g.verdict == Guess::equal; });
    if (!found) explore({{}, from_.attributes, {}});
  }

 private:
  struct State {
    Names inputs;
    Json attributes;
    std::set<std::string> decided;  // optional tensors that stay out, attributes
  };

  void explore(const State& state) {
    if (tries >= kTries) {
      stopped = true;
      return;
    }
    tries++;
    verify::Case c(std::make_shared<Renamed>(from_, function_, state.inputs, state.attributes),
                   DType::f64, Device{});
    bool worked = false;
    try {
      adapter_(c);
      worked = bool(c.output("loss")) && c.output("loss").numel() == 1;
      if (!worked) return;
    } catch (const verify::Missing& missing) {
      if (missing.is_tensor)
        choose_tensor(state, missing.name);
      else
        choose_attribute(state, missing.name);
      return;
    } catch (const std::exception&) {
      // Perhaps right with another attribute.
    }
    for (const std::string& name : c.asked()) {
      if (state.inputs.count(name) || state.decided.count(name)) continue;
      bool is_tensor = name.starts_with("in.") || name.starts_with("param.");
      if (!is_tensor && (state.attributes.contains(name) || values_of(name).empty())) continue;
      // No temperature makes a refused shape right; a dense map may.
      if (!is_tensor && !worked &&
          (values_of(name)[0].is_number() || values_of(name)[0].is_boolean()))
        continue;
      if (is_tensor && state.inputs.size() >= from_.inputs.size()) continue;
      if (is_tensor) choose_tensor(state, name);
      State without = state;
      without.decided.insert(name);
      explore(without);
      if (!is_tensor) choose_attribute(without, name);
      return;
    }
    if (worked) judge(state, c);
  }

  void choose_tensor(const State& state, const std::string& name) {
    std::vector<std::pair<int, std::string>> fitting;
    for (const data::TensorInfo& info : from_.inputs) {
      bool taken = std::any_of(state.inputs.begin(), state.inputs.end(),
                               [&](auto& pair) { return pair.second == info.name; });
      if (!taken && is_integer(info.dtype) == wants_integer(name))
        fitting.emplace_back(-similarity(name, info.name), info.name);
    }
    std::stable_sort(fitting.begin(), fitting.end(),
                     [](auto& a, auto& b) { return a.first < b.first; });
    for (auto& [unused, theirs] : fitting) {
      State next = state;
      next.inputs[name] = theirs;
      explore(next);
    }
  }

  void choose_attribute(const State& state, const std::string& name) {
    for (const Json& value : values_of(name)) {
      State next = state;
      next.attributes[name] = value;
      explore(next);
    }
  }

  std::vector<Json> values_of(const std::string& name) const {
    if (name == "feat_dims") return two_blocks();
    for (const std::string& key : {function_ + "/" + name, name})
      if (auto at = grids().find(key); at != grids().end()) return at->second;
    return {};
  }

  // The widths of two teachers whose features lie side by side in one of the inputs.
  std::vector<Json> two_blocks() const {
    std::set<int64_t> widths;
    for (const data::TensorInfo& info : from_.inputs)
      if (info.shape.rank == 2 && info.shape[1] <= 32 && !is_integer(info.dtype))
        widths.insert(info.shape[1]);
    std::vector<Json> list;
    for (int64_t width : widths)
      for (int64_t first = 1; first < width; first++)
        list.push_back(Json::array({first, width - first}));
    return list;
  }

  void judge(const State& state, verify::Case& c) {
    Guess guess;
    guess.function = function_;
    guess.inputs = state.inputs;
    for (auto& [name, value] : state.attributes.items()) guess.attributes[name] = value.dump();
    for (const data::TensorInfo& info : from_.inputs)
      if (std::none_of(state.inputs.begin(), state.inputs.end(), [&](auto& pair) {
            return pair.second == info.name && c.asked().count(pair.first);
          }))
        guess.unused.push_back(info.name);
    double ours = c.output("loss").item();
    if (!std::isfinite(ours)) return;
    std::vector<Pair> pairs;
    try {
      pairs = gradients(state, c);
    } catch (const std::exception&) {
      return;
    }
    std::optional<double> reasoned = loss_factor(ours, from_.loss);
    bool known = std::any_of(pairs.begin(), pairs.end(), [](auto& p) { return p.largest > 0; });
    guess.factor = known ? gradient_factor(pairs) : reasoned.value_or(1);
    compare(pairs, guess);
    if (!guess.tensor.empty()) {  // a wrong gradient says nothing about the factor
      double ratio = from_.loss / ours;
      if (reasoned || (std::isfinite(ratio) && ratio != 0)) guess.factor = reasoned.value_or(ratio);
      compare(pairs, guess);
      if (!reasoned) guess.distance++;
    }
    double difference = std::fabs(from_.loss - guess.factor * ours);
    double relative = difference == 0 ? 0 : difference / std::fabs(from_.loss);
    bool same_loss = relative <= from_.tolerance;
    if (guess.tensor.empty() && std::any_of(pairs.begin(), pairs.end(), [&](const Pair& pair) {
          return pair.says_something(from_.loss, ours);
        }))
      guess.verdict = Guess::gradients_equal;
    if (same_loss && guess.tensor.empty()) guess.verdict = Guess::equal;
    if (!same_loss) {
      guess.tensor = from_.loss_name;
      guess.error = relative;
    }
    guess.distance += std::min(relative, 1.0);
    guesses.push_back(std::move(guess));
  }

  // A gradient of theirs and ours.
  struct Pair {
    std::string name;
    std::vector<double> theirs, ours;
    double tolerance, input = 0, largest = 0, our_largest = 0;  // largest absolute values

    // Neither is rounding noise around zero, beside a loss to which its input contributes.
    bool says_something(double their_loss, double our_loss) const {
      auto is_noise = [&](double gradient, double loss) {
        return gradient * input <= std::max(1e-12, 0.1 * tolerance * std::fabs(loss));
      };
      return !is_noise(largest, their_loss) && !is_noise(our_largest, our_loss);
    }
  };

  static double largest_of(const std::vector<double>& values) {
    double largest = 0;
    for (double v : values) largest = std::max(largest, std::fabs(v));
    return largest;
  }

  std::vector<Pair> gradients(const State& state, verify::Case& c) const {
    std::vector<Pair> pairs;
    bool differentiated = false;
    for (const data::TensorInfo& info : from_.inputs)
      for (auto& [ours, theirs] : state.inputs) {
        auto name = from_.gradients.find(theirs);
        if (theirs != info.name || name == from_.gradients.end() || !c.asked().count(ours))
          continue;
        if (!differentiated) c.differentiate();
        differentiated = true;
        Tensor gradient = c.gradient(ours);
        Pair pair{name->second,
                  from_.file->read(name->second, DType::f64).values(),
                  {},
                  10 * Export::tolerance_of(info.dtype)};
        pair.ours = gradient ? gradient.values() : std::vector<double>(pair.theirs.size());
        pair.input = largest_of(from_.file->read(theirs, DType::f64).values());
        pair.largest = largest_of(pair.theirs);
        pair.our_largest = largest_of(pair.ours);
        pairs.push_back(std::move(pair));
      }
    return pairs;
  }

  // The factor between their gradients and ours, by least squares.
  double gradient_factor(const std::vector<Pair>& pairs) const {
    double mixed = 0, squared = 0;
    for (const Pair& pair : pairs)
      for (size_t i = 0; i < pair.theirs.size(); i++) {
        mixed += pair.theirs[i] * pair.ours[i];
        squared += pair.ours[i] * pair.ours[i];
      }
    double factor = squared > 0 ? mixed / squared : 0;
    return std::fabs(factor - 1) < from_.tolerance ? 1 : factor;
  }

  // The first gradient that disagrees with the factor.
  static void compare(const std::vector<Pair>& pairs, Guess& guess) {
    guess.tensor.clear();
    guess.distance = 0;
    double overall = 0;
    for (const Pair& pair : pairs) overall = std::max(overall, pair.largest);
    if (overall == 0) return;
    for (const Pair& pair : pairs) {
      double error = 0;
      for (size_t i = 0; i < pair.theirs.size(); i++)
        error = std::max(error, std::fabs(pair.theirs[i] - guess.factor * pair.ours[i]));
      // A gradient that is rounding noise beside the others proves nothing.
      double relative = error == 0 ? 0 : error / std::max(pair.largest, 1e-6 * overall);
      if (relative > pair.tolerance && guess.tensor.empty()) {
        guess.tensor = pair.name;
        guess.error = relative;
      }
      guess.distance = std::max(guess.distance, std::min(relative, 10.0));
    }
  }

  // With nothing but the loss to go by, only factors that code has for a reason: batch, width.
  std::optional<double> loss_factor(double ours, double theirs) const {
    std::set<double> factors{2, 0.5, 10, 0.1, 100, 0.01};
    for (const data::TensorInfo& info : from_.inputs)
      if (info.shape.rank == 2) {
        double n = double(info.shape[0]), k = double(info.shape[1]);
        for (double f : {n, k, n * k, n * n}) factors.insert({f, 1 / f});
      }
    auto fits = [&](double f) {
      return std::fabs(theirs - f * ours) <= from_.tolerance * std::fabs(theirs);
    };
    if (fits(1)) return 1;
    auto found = std::find_if(factors.begin(), factors.end(), fits);
    return found == factors.end() ? std::nullopt : std::optional(*found);
  }

  const Export& from_;
  std::string function_;
  verify::Adapter adapter_;
};

// The simplest first: no factor, few attributes, few inputs that play no part.
bool simpler(const Guess& a, const Guess& b) {
  auto key = [](const Guess& g) {
    double distance = std::round(1e6 * g.distance);  // not a matter of the last bits
    return std::tuple(-int(g.verdict), g.verdict == Guess::different ? distance : 0, g.factor != 1,
                      g.unused.size(), g.attributes.size(), g.function);
  };
  return key(a) < key(b);
}

// Whether `simple` is `g` without an attribute that plays no part.
bool says_as_much(const Guess& simple, const Guess& g) {
  return simple.function == g.function && simple.inputs == g.inputs && simple.factor == g.factor &&
         simple.verdict == g.verdict &&
         std::includes(g.attributes.begin(), g.attributes.end(), simple.attributes.begin(),
                       simple.attributes.end());
}

Json as_json(const Guess& g) {
  constexpr const char* verdicts[] = {"different", "gradients equal", "equal"};
  Json attributes = Json::object();
  for (auto& [name, value] : g.attributes) attributes[name] = Json::parse(value);
  Json j{{"verdict", verdicts[g.verdict]}, {"function", g.function}, {"inputs", g.inputs},
         {"attributes", attributes},       {"unused", g.unused},     {"factor", g.factor}};
  if (!g.tensor.empty()) j.update({{"tensor", g.tensor}, {"error", g.error}});
  return j;
}

std::string describe(const Guess& g) {
  std::string text = g.function;
  for (auto& [name, value] : g.attributes) text += concat(" ", name, "=", value);
  text += " (";
  for (auto& [ours, theirs] : g.inputs)
    text += concat(text.ends_with("(") ? "" : ", ", ours.substr(ours.find('.') + 1), " = ",
                   data::printable(theirs));
  text += ")";
  if (!g.unused.empty()) {
    text += "; it does not read";
    for (const std::string& name : g.unused) text += " " + data::printable(name);
  }
  return text;
}

// The methods that this function belongs to.
std::string methods_of(const std::string& function) {
  std::string list;
  for (const methods::Method* m : methods::list_methods())
    for (const std::string& name : m->explanation.cases)
      if (name == function) list += concat(list.empty() ? "; see pupil explain " : ", ", m->name);
  return list;
}

void run(const std::string& path, bool as_machine) {
  Identified found = identify(path);
  if (as_machine) {
    Json j{{"has_gradients", found.has_gradients},
           {"tries", found.tries},
           {"stopped", found.stopped},
           {"equal", Json::array()},
           {"nearest", Json::array()}};
    for (const Guess& g : found.equal) j["equal"].push_back(as_json(g));
    for (const Guess& g : found.nearest) j["nearest"].push_back(as_json(g));
    std::cout << j.dump(1, ' ', false, Json::error_handler_t::replace) << "\n";
  } else {
    std::string last;
    int shown = 0;
    for (const Guess& g : found.equal) {
      shown = g.function == last ? shown + 1 : 1;
      if (shown > 3) continue;  // other ways to write the same
      std::cout << (g.verdict == Guess::equal ? "equal: " : "equal gradients, another loss: ")
                << describe(g);
      if (g.factor != 1) std::cout << ", times " << g.factor;
      std::cout << (g.function == last ? "" : methods_of(g.function)) << "\n";
      last = g.function;
    }
    if (!found.equal.empty() && !found.has_gradients)
      std::cout << "only the loss was compared: export gradients (grad.NAME) to be sure\n";
    if (found.equal.empty())
      for (const Guess& g : found.nearest) {
        std::cout << "near: " << describe(g) << ": "
                  << (g.factor == 1 && g.tensor != found.loss ? found.loss + " equal, " : "")
                  << data::printable(g.tensor) << " differs first, by " << g.error
                  << " of its largest value";
        if (g.factor != 1) std::cout << ", at factor " << g.factor;
        std::cout << "\n";
      }
    for (const std::string& function : found.stopped)
      std::cout << "not every variant of " << function << " was tried\n";
    std::cout << found.tries << " variants tried\n";
  }
  if (found.equal.empty()) throw Error(concat("identify: no loss of this program equals ", path));
}

}  // namespace

Identified identify(const std::string& path) {
  Export from(path);
  Identified found;
  found.loss = from.loss_name;
  found.has_gradients = !from.gradients.empty();
  for (auto& [function, adapter] : verify::adapters()) {
    if (!is_loss(function)) continue;
    Search search(from, function, adapter);
    search.go();
    found.tries += search.tries;
    if (search.stopped) found.stopped.push_back(function);
    std::sort(search.guesses.begin(), search.guesses.end(), simpler);
    if (!search.guesses.empty() && search.guesses[0].verdict == Guess::different)
      found.nearest.push_back(search.guesses[0]);
    for (const Guess& g : search.guesses)
      if (g.verdict != Guess::different &&
          std::none_of(found.equal.begin(), found.equal.end(),
                       [&](const Guess& other) { return says_as_much(other, g); }))
        found.equal.push_back(g);
  }
  std::sort(found.nearest.begin(), found.nearest.end(), simpler);
  if (found.nearest.size() > 5) found.nearest.resize(5);
  // Functions in the order of their best guess, each with all of its own.
  std::map<std::string, Guess> best;
  for (const Guess& g : found.equal) best.emplace(g.function, g);
  std::stable_sort(found.equal.begin(), found.equal.end(), [&](const Guess& a, const Guess& b) {
    return a.function != b.function && simpler(best.at(a.function), best.at(b.function));
  });
  return found;
}

void add_identify_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("identify", "which loss of Pupil an exported loss is");
  command->footer(
      "FILE holds the inputs under any names, out.loss, and the gradients that are known as\n"
      "grad.NAME. Every loss is tried with every fitting assignment and the usual attributes.\n"
      "Example:\n  pupil identify exported.safetensors");
  struct Arguments {
    std::string path;
    bool json = false;
  };
  auto a = std::make_shared<Arguments>();
  command->add_option("FILE", a->path, "safetensors")->required();
  command->add_flag("--json", a->json, "for machines");
  command->callback([a] { run(a->path, a->json); });
}

}  // namespace pupil
