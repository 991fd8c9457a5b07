// The specification of a data set, its subsets, and what all kinds share.
#include <algorithm>
#include <filesystem>
#include <numeric>
#include <set>

#include "../tensor/memory.h"
#include "sha256.h"
#include "sources.h"

namespace pupil::data {
namespace {

const std::vector<std::string> kKinds = {"mnist",    "fashion_mnist", "cifar10",
                                         "cifar100", "folder",        "unlabeled",
                                         "npy",      "safetensors",   "features"};

std::string kinds() {
  std::string text;
  for (const std::string& kind : kKinds) text += (text.empty() ? "" : ", ") + kind;
  return text;
}

// "train[1000]", "test", "[:500]": a split name, a count or both.
bool parse_split(std::string_view text, Spec& spec) {
  size_t bracket = text.find('[');
  std::string_view name = text.substr(0, bracket);
  if (name != "" && name != "train" && name != "test" && name != "val") return false;
  if (bracket == std::string_view::npos) {
    if (name.empty()) return false;
    spec.split = name;
    return true;
  }
  std::string_view digits = text.substr(bracket + 1);
  bool in_order = digits.starts_with(':');
  if (in_order) digits.remove_prefix(1);
  if (digits.size() < 2 || digits.back() != ']') return false;
  digits.remove_suffix(1);
  if (digits.size() > 15 || digits.find_first_not_of("0123456789") != std::string_view::npos)
    return false;
  spec.split = name;
  spec.count = std::stoll(std::string(digits));
  spec.in_order = in_order;
  return true;
}

// Fisher-Yates with one random word per place; the word's bias is below n / 2^32.
template <class T>
void shuffle(std::vector<T>& list, const RngKey& key) {
  for (size_t i = list.size(); i > 1; i--) {
    uint64_t j = uint64_t(random_bits(key, int64_t(i))) * i >> 32;
    std::swap(list[i - 1], list[j]);
  }
}

// The samples of each class in an order that only the class, its members and the seed decide, then
// dealt so that the first n of the result have the shares of the whole as closely as whole samples
// allow: place k of a class with m members is due at (k + u) / m, with a small u per class.
std::vector<int64_t> stratified_order(const Dataset& whole, uint64_t seed, const char* stream) {
  std::vector<std::vector<int64_t>> members(size_t(std::max<int64_t>(whole.classes, 1)));
  for (int64_t i = 0; i < whole.size(); i++) members[size_t(whole.labels[size_t(i)])].push_back(i);
  struct Due {
    double when;
    uint32_t tie;
    int64_t sample;
  };
  std::vector<Due> due;
  due.reserve(size_t(whole.size()));
  for (size_t c = 0; c < members.size(); c++) {
    RngKey key{seed, stream_id(stream), c};
    shuffle(members[c], key);
    uint32_t tie = random_bits(key, 0);  // which class comes first among equals
    double m = double(members[c].size());
    for (size_t k = 0; k < members[c].size(); k++)
      due.push_back({(double(k) + 0.5) / m, tie, members[c][k]});
  }
  std::sort(due.begin(), due.end(), [](const Due& a, const Due& b) {
    return std::tie(a.when, a.tie, a.sample) < std::tie(b.when, b.tie, b.sample);
  });
  std::vector<int64_t> order;
  order.reserve(due.size());
  for (const Due& d : due) order.push_back(d.sample);
  return order;
}

void check_count(const Dataset& whole, int64_t n) {
  if (n < 1 || n > whole.size())
    fail_input("data: ", whole.spec, " has ", whole.size(), " samples, ", n,
               " were asked for; ask for 1 to ", whole.size());
}

}  // namespace

Dataset select(const Dataset& whole, const std::vector<int64_t>& chosen) {
  Dataset part = whole;
  part.labels.clear();
  part.rows.clear();
  part.paths.clear();
  for (int64_t i : chosen) {
    part.labels.push_back(whole.labels[size_t(i)]);
    part.rows.push_back(whole.rows[size_t(i)]);
    if (!whole.paths.empty()) part.paths.push_back(whole.paths[size_t(i)]);
  }
  if (whole.image)
    part.image = [image = whole.image, chosen](int64_t i, Image& out) {
      image(chosen[size_t(i)], out);
    };
  if (whole.values) {
    Shape shape = whole.values.shape();
    int64_t width = whole.values.numel() / shape[0];
    shape[0] = int64_t(chosen.size());
    ModelScope keep;
    part.values = empty(shape);
    for (size_t i = 0; i < chosen.size(); i++)
      std::copy_n(whole.values.data<float>() + chosen[i] * width, width,
                  part.values.data<float>() + int64_t(i) * width);
  }
  return part;
}

void say_once(const std::string& line) {
  static std::set<std::string> said;
  if (said.insert(line).second) fprintf(stderr, "pupil: %s\n", line.c_str());
}

Spec parse_spec(const std::string& text) {
  Spec spec;
  spec.text = text;
  size_t colon = text.find(':');
  spec.kind = text.substr(0, colon);
  if (colon == std::string::npos || colon + 1 == text.size())
    fail_input("data: '", text, "' has no path; write KIND:PATH[:SPLIT[N]], for example ",
               "cifar10:DIR:train[1000]; kinds: ", kinds());
  spec.path = text.substr(colon + 1);
  size_t last = spec.path.rfind(':');
  // of "train[:500]" the colon before the split
  if (last != std::string::npos && last > 0 && spec.path[last - 1] == '[')
    last = spec.path.rfind(':', last - 1);
  if (last != std::string::npos) {
    std::string tail = spec.path.substr(last + 1);
    if (parse_split(tail, spec))
      spec.path.resize(last);
    else if (tail.find('/') == std::string::npos && !std::filesystem::exists(spec.path))
      fail_input("data: '", text, "': '", tail,
                 "' is not a split; use train, test or val, with [N] for the first N samples of a ",
                 "stratified order");
  }
  if (spec.path.empty()) fail_input("data: '", text, "' has an empty path");
  if (std::find(kKinds.begin(), kKinds.end(), spec.kind) == kKinds.end())
    fail_input("data: unknown kind '", spec.kind, "' in '", text, "'; kinds: ", kinds());
  if (spec.count == 0) fail_input("data: '", text, "' asks for 0 samples; give at least 1");
  return spec;
}

std::pair<std::string, std::string> train_and_test(const std::string& text) {
  namespace fs = std::filesystem;
  Spec spec = parse_spec(text);
  std::error_code error;
  bool is_file = fs::is_regular_file(spec.path, error) || spec.kind == "features" ||
                 spec.kind == "unlabeled" || spec.path.find(".npy") != std::string::npos;
  bool one_folder = spec.kind == "folder" && fs::is_directory(spec.path, error) &&
                    !fs::is_directory(fs::path(spec.path) / "test", error);
  if (is_file || one_folder || !spec.split.empty() || spec.count >= 0) return {text, ""};
  return {text + ":train", text + ":test"};
}

Dataset open_dataset(const std::string& text, bool strict, uint64_t seed) {
  Spec spec = parse_spec(text);
  Dataset set;
  if (spec.kind == "mnist" || spec.kind == "fashion_mnist")
    set = open_idx(spec);
  else if (spec.kind == "cifar10" || spec.kind == "cifar100")
    set = open_cifar(spec);
  else if (spec.kind == "folder")
    set = open_folder(spec, strict);
  else if (spec.kind == "unlabeled")
    set = open_unlabeled(spec, strict);
  else if (spec.kind == "npy" || spec.kind == "safetensors")
    set = open_arrays(spec);
  else
    set = open_features(spec);
  if (!set.size()) fail_input("data: '", text, "' holds no samples");
  set.spec = text;
  if (spec.count >= 0 && spec.in_order) {
    check_count(set, spec.count);
    std::vector<int64_t> first(static_cast<size_t>(spec.count));
    std::iota(first.begin(), first.end(), 0);
    return select(set, first);
  }
  if (spec.count >= 0) set = stratified_subset(set, spec.count, seed);
  return set;
}

Dataset stratified_subset(const Dataset& whole, int64_t n, uint64_t seed) {
  check_count(whole, n);
  std::vector<int64_t> order = stratified_order(whole, seed, "data.subset");
  order.resize(size_t(n));
  std::sort(order.begin(), order.end());
  return select(whole, order);
}

std::pair<Dataset, Dataset> split_validation(const Dataset& whole, double fraction, uint64_t seed) {
  int64_t held_out = int64_t(std::llround(double(whole.size()) * fraction));
  if (!(fraction > 0 && fraction < 1) || held_out < 1 || held_out >= whole.size())
    fail_input("data: a validation share of ", fraction, " leaves no samples on one side of the ",
               whole.size(), " of ", whole.spec, "; choose a share between 0 and 1");
  // Another stream than the subsets': a subset is not made of the samples held out first.
  std::vector<int64_t> order = stratified_order(whole, seed, "data.validation");
  auto middle = order.begin() + held_out;
  std::sort(order.begin(), middle);
  std::sort(middle, order.end());
  return {select(whole, {middle, order.end()}), select(whole, {order.begin(), middle})};
}

void check_labels(std::span<const int64_t> labels, int64_t classes, const std::string& file) {
  for (size_t i = 0; i < labels.size(); i++)
    if (labels[i] < 0 || labels[i] >= classes)
      fail_input("data: ", file, ": label ", labels[i], " of sample ", i, " is outside 0 ... ",
                 classes - 1, "; is this the right kind of data set, or is the file damaged?");
}

void number_rows(Dataset& set) {
  set.rows.resize(set.labels.size());
  for (size_t i = 0; i < set.rows.size(); i++) set.rows[i] = int64_t(i);
  set.whole = set.size();
}

std::string hash_samples(const std::string& geometry, std::span<const uint8_t> bytes,
                         std::span<const int64_t> labels) {
  Sha256 sha;
  sha.add(geometry.data(), geometry.size() + 1);  // with the final 0
  sha.add(bytes.data(), bytes.size());
  sha.add(labels.data(), labels.size_bytes());
  return sha.hex();
}

Dataset from_pixels(PixelArray pixels, std::vector<int64_t> labels, int64_t classes,
                    const std::string& label_file) {
  check_labels(labels, classes, label_file);
  auto array = std::make_shared<const PixelArray>(std::move(pixels));
  int h = array->height, w = array->width, c = array->channels;
  size_t stride = size_t(h) * size_t(w) * size_t(c);
  Dataset set;
  set.classes = classes;
  set.hash = hash_samples(
      concat("pixels ", labels.size(), " ", h, " ", w, " ", c, array->planes ? " planes" : ""),
      {array->first, stride * labels.size()}, labels);
  set.labels = std::move(labels);
  number_rows(set);
  set.image = [array, stride](int64_t i, Image& out) {
    out.height = array->height;
    out.width = array->width;
    out.channels = array->channels;
    out.pixels.resize(stride);
    const uint8_t* from = array->first + size_t(i) * stride;
    size_t area = size_t(out.height) * size_t(out.width), channels = size_t(out.channels);
    if (!array->planes || channels == 1) {
      std::copy_n(from, stride, out.pixels.data());
      return;
    }
    for (size_t c = 0; c < channels; c++)
      for (size_t p = 0; p < area; p++) out.pixels[p * channels + c] = from[c * area + p];
  };
  return set;
}

}  // namespace pupil::data
