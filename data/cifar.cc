// CIFAR-10 and CIFAR-100 (Krizhevsky 2009): the binary records and the Python batches.
#include <algorithm>
#include <filesystem>

#include "file.h"
#include "pickle.h"
#include "sources.h"

namespace fs = std::filesystem;

namespace pupil::data {
namespace {

constexpr size_t kPixels = 3 * 32 * 32;

struct Files {
  std::vector<std::string> paths;
  fs::path folder;
  bool pickled = false;
};

Files find_files(const Spec& spec, bool train) {
  bool ten = spec.kind == "cifar10";
  std::error_code error;
  for (const char* below :
       {"", "cifar-10-batches-bin", "cifar-100-binary", "cifar-10-batches-py", "cifar-100-python"})
    for (const char* suffix : {".bin", ""}) {
      Files found;
      found.folder = *below ? fs::path(spec.path) / below : fs::path(spec.path);
      found.pickled = !*suffix;
      auto add = [&](const std::string& name) {
        if (fs::is_regular_file(found.folder / (name + suffix), error))
          found.paths.push_back((found.folder / (name + suffix)).string());
      };
      if (!ten)
        add(train ? "train" : "test");
      else if (!train)
        add("test_batch");
      else
        for (int k = 1; k <= 5; k++) add(concat("data_batch_", k));
      if (!found.paths.empty()) return found;
    }
  if (!fs::is_directory(spec.path, error))
    fail_input("data: no folder ", spec.path, " for ", spec.kind,
               "; unpack the archive of the binary or the Python version and name its folder");
  const char* expected =
      ten ? (train ? "data_batch_1[.bin] ... data_batch_5[.bin]" : "test_batch[.bin]")
          : (train ? "train[.bin]" : "test[.bin]");
  fail_input("data: ", spec.path, " has no ", expected,
             "; unpack the archive of the binary or the Python version and name its folder");
}

// Python 3 writes bytes at protocol 2 as the call _codecs.encode(text, 'latin1').
class EncodedBytes {
 public:
  static constexpr std::string_view kGlobal = "_codecs.encode";

  // A file cannot hold more characters than it has bytes.
  explicit EncodedBytes(size_t file_size) : left_(file_size) {}

  PickleValue decode(const Pickle& pickle, std::span<const PickleValue> args) {
    if (args.size() != 2 || !args[0].is(PickleValue::text) || !args[1].is(PickleValue::text) ||
        (args[1].view() != "latin1" && args[1].view() != "latin-1"))
      pickle.refuse("a text that is no bytes");
    std::string_view from = args[0].view();
    if (from.size() > left_) pickle.refuse("more text than the file holds");
    left_ -= from.size();
    std::string bytes;
    bytes.reserve(from.size());
    for (size_t i = 0; i < from.size(); i++) {  // UTF-8 of U+0000 to U+00FF
      uint8_t c = uint8_t(from[i]), next = i + 1 < from.size() ? uint8_t(from[i + 1]) : 0;
      if (c >= 0x80) {
        if ((c != 0xc2 && c != 0xc3) || (next & 0xc0) != 0x80)
          pickle.refuse("a text that is no bytes");
        c = uint8_t((c << 6) | (next & 0x3f));
        i++;
      }
      bytes += char(c);
    }
    kept_.push_back(std::move(bytes));
    PickleValue value;
    value.kind = PickleValue::text;
    value.length = uint32_t(kept_.back().size());
    value.data = kept_.back().data();
    return value;
  }

 private:
  size_t left_;
  std::deque<std::string> kept_;  // its strings never move
};

// A pickled dict of `data`, an array of bytes (n, 3072), and `labels` or `fine_labels`, a list of
// numbers. Allowed is what such an array needs, and the machine knows nothing else.
void read_pickled(const std::string& path, bool ten, Bytes& pixels, std::vector<int64_t>& labels) {
  enum Global : int64_t { reconstruct, ndarray, dtype, encode };
  constexpr int64_t kByteType = -1;  // the object that dtype('u1') is; arrays count from 0
  struct Array {
    int64_t rows = 0;
    std::string_view bytes;
  };
  using Value = PickleValue;
  MappedFile file(path);
  std::vector<Array> arrays;
  EncodedBytes encoded(file.size());
  Pickle::Rules rules;
  rules.global = [](std::string_view name) -> std::optional<int64_t> {
    if (name == "numpy.core.multiarray._reconstruct" ||
        name == "numpy._core.multiarray._reconstruct")
      return reconstruct;
    if (name == "numpy.ndarray") return ndarray;
    if (name == "numpy.dtype") return dtype;
    if (name == EncodedBytes::kGlobal) return encode;
    return std::nullopt;
  };
  rules.call = [&](Pickle& pickle, int64_t global, std::span<const Value> args) {
    if (global == encode) return encoded.decode(pickle, args);
    if (global == dtype) {
      if (args.empty() || !args[0].is(Value::text) || args[0].view() != "u1")
        pickle.refuse("an array of something other than bytes");
      return Value::of(Value::object, kByteType);
    }
    if (global != reconstruct || args.empty() || !args[0].is(Value::global) ||
        args[0].number != ndarray)
      pickle.refuse("a call that no CIFAR batch needs");
    arrays.emplace_back();
    return Value::of(Value::object, int64_t(arrays.size()) - 1);
  };
  // Of an array: (version, shape, dtype, Fortran order, bytes). Of a dtype nothing that matters.
  rules.build = [&](Pickle& pickle, Value object, Value state) {
    if (object.is(Value::object) && object.number == kByteType) return;
    if (!object.is(Value::object) || !state.is(Value::tuple) || pickle.items(state).size() != 5)
      pickle.refuse("an array in a form that NumPy does not write");
    const std::vector<Value>& f = pickle.items(state);
    bool fortran = f[3].is(Value::boolean) && f[3].number;
    if (!f[1].is(Value::tuple) || pickle.items(f[1]).size() != 2 || !f[2].is(Value::object) ||
        f[2].number != kByteType || fortran || !f[4].is(Value::text))
      pickle.refuse("an array that is not bytes of the shape (n, 3072) in C order");
    Value rows = pickle.items(f[1])[0], columns = pickle.items(f[1])[1];
    if (!rows.is(Value::integer) || !columns.is(Value::integer) ||
        columns.number != int64_t(kPixels) || f[4].length % kPixels ||
        rows.number != int64_t(f[4].length / kPixels))
      pickle.refuse("an array that is not bytes of the shape (n, 3072)");
    arrays[size_t(object.number)] = {rows.number, f[4].view()};
  };
  rules.advice = "Take the archive as it is published, or its binary version";
  Pickle pickle(std::move(rules), concat("data: ", printable(path), ": "));
  std::string_view bytes = file.text();
  Value root = pickle.read(bytes);
  const char* label_key = ten ? "labels" : "fine_labels";
  const Value* data = root.is(Value::dict) ? pickle.find(root, "data") : nullptr;
  const Value* list = root.is(Value::dict) ? pickle.find(root, label_key) : nullptr;
  if (!data || !data->is(Value::object) || data->number < 0 || !list || !list->is(Value::list))
    pickle.refuse(concat("no CIFAR batch: 'data' or the list '", label_key, "' is missing"));
  const Array& array = arrays[size_t(data->number)];
  if (!array.rows || int64_t(pickle.items(*list).size()) != array.rows)
    pickle.refuse(concat(array.rows, " images with ", pickle.items(*list).size(), " labels"));
  for (Value label : pickle.items(*list)) {
    if (!label.is(Value::integer)) pickle.refuse("a label that is no number");
    labels.push_back(label.number);
  }
  pixels.insert(pixels.end(), array.bytes.begin(), array.bytes.end());
}

void read_records(const std::string& path, bool ten, Bytes& pixels, std::vector<int64_t>& labels) {
  // CIFAR-100 records start with the coarse label, then the fine one, which is the class.
  size_t record = kPixels + (ten ? 1 : 2);
  MappedFile file(path);
  if (!file.size() || file.size() % record)
    fail_input("data: ", path, " has ", file.size(), " bytes, which is not a positive multiple of ",
               "the ", record, " bytes of a record; fetch the file again");
  size_t n = file.size() / record, before = labels.size();
  pixels.resize((before + n) * kPixels);
  for (size_t i = 0; i < n; i++) {
    const uint8_t* end = file.data() + (i + 1) * record;
    labels.push_back(end[-int64_t(kPixels) - 1]);
    std::copy_n(end - kPixels, kPixels, pixels.data() + (before + i) * kPixels);
  }
}

// Class names from the text file of the binary version or the pickle of the Python version; none
// where there is neither.
std::vector<std::string> read_names(const fs::path& folder, bool ten, size_t count) {
  std::vector<std::string> names;
  std::error_code error;
  std::string text = (folder / (ten ? "batches.meta.txt" : "fine_label_names.txt")).string();
  std::string pickled = (folder / (ten ? "batches.meta" : "meta")).string();
  if (fs::exists(text, error)) {
    MappedFile file(text);
    std::istringstream lines(std::string(file.text()));
    for (std::string line; std::getline(lines, line);) {
      while (line.ends_with('\r')) line.pop_back();
      if (!line.empty()) names.push_back(line);
    }
  } else if (fs::exists(pickled, error)) {
    MappedFile file(pickled);
    EncodedBytes encoded(file.size());
    Pickle::Rules rules;
    rules.global = [](std::string_view name) {
      return name == EncodedBytes::kGlobal ? std::optional<int64_t>(0) : std::nullopt;
    };
    rules.call = [&](Pickle& p, int64_t, std::span<const PickleValue> args) {
      return encoded.decode(p, args);
    };
    Pickle pickle(std::move(rules), concat("data: ", printable(pickled), ": "));
    std::string_view bytes = file.text();
    PickleValue root = pickle.read(bytes);
    const PickleValue* list = root.is(PickleValue::dict)
                                  ? pickle.find(root, ten ? "label_names" : "fine_label_names")
                                  : nullptr;
    if (list && list->is(PickleValue::list))
      for (PickleValue name : pickle.items(*list))
        if (name.is(PickleValue::text)) names.emplace_back(name.view());
  }
  if (names.size() != count) names.clear();
  return names;
}

}  // namespace

Dataset open_cifar(const Spec& spec) {
  if (spec.split == "val")
    fail_input("data: ", spec.kind, " has the splits train and test, not val");
  bool ten = spec.kind == "cifar10", train = spec.split != "test";
  Files found = find_files(spec, train);
  auto pixels = std::make_shared<Bytes>();
  std::vector<int64_t> labels;
  int64_t classes = ten ? 10 : 100;
  for (const std::string& path : found.paths) {
    size_t before = labels.size();
    (found.pickled ? read_pickled : read_records)(path, ten, *pixels, labels);
    check_labels(std::span(labels).subspan(before), classes, path);
  }
  if (ten && train && found.paths.size() != 5)
    say_once(concat("note: ", found.folder.string(), " has ", found.paths.size(),
                    " of the 5 training files of cifar10: ", labels.size(), " images"));
  Dataset set = from_pixels({pixels, pixels->data(), 32, 32, 3, true}, std::move(labels), classes,
                            found.folder.string());
  set.class_names = read_names(found.folder, ten, size_t(classes));
  return set;
}

}  // namespace pupil::data
