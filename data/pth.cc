// PyTorch's two containers. Both hold one pickle of the object, in which tensors are calls of
// torch._utils._rebuild_tensor_v2 on storages that lie outside it: records of a zip archive (since
// version 1.6), or behind the pickle (legacy). torch/serialization.py, torch/_utils.py.
#include <algorithm>
#include <deque>

#include "pickle.h"
#include "stored.h"
#include "zip.h"

namespace pupil::data {
namespace {

using Value = PickleValue;

constexpr std::string_view kZipStart = "PK\x03\x04";

enum Global : int64_t {
  kOrderedDict,
  kRebuildTensor,
  kRebuildParameter,
  kSize,
  kNamespace,
  kScriptList,
  kScriptModule,
  kStorage  // and the types behind it
};

constexpr std::pair<std::string_view, Global> kGlobals[] = {
    {"collections.OrderedDict", kOrderedDict},
    {"torch._utils._rebuild_tensor_v2", kRebuildTensor},
    {"torch._utils._rebuild_tensor", kRebuildTensor},
    {"torch._utils._rebuild_parameter", kRebuildParameter},
    {"torch.Size", kSize},
    {"argparse.Namespace", kNamespace}};

// What else the pickle of a TorchScript archive names: its own classes, and lists of one type.
std::optional<int64_t> allowed_in_script(std::string_view name) {
  if (name.starts_with("__torch__.")) return kScriptModule;
  for (std::string_view list : {"intlist", "doublelist", "boollist", "tensorlist"})
    if (name == concat("torch.jit._pickle.build_", list)) return kScriptList;
  if (name == "torch.jit._pickle.restore_type_tag") return kScriptList;
  return std::nullopt;
}

constexpr std::pair<std::string_view, Stored> kStorages[] = {
    {"DoubleStorage", Stored::F64},    {"FloatStorage", Stored::F32}, {"HalfStorage", Stored::F16},
    {"BFloat16Storage", Stored::BF16}, {"LongStorage", Stored::I64},  {"IntStorage", Stored::I32},
    {"ShortStorage", Stored::I16},     {"CharStorage", Stored::I8},   {"ByteStorage", Stored::U8},
    {"BoolStorage", Stored::BOOL}};

std::optional<int64_t> allowed(std::string_view name) {
  for (auto [known, global] : kGlobals)
    if (name == known) return global;
  for (std::string_view module : {"torch.cuda.", "torch."})  // old files name CUDA's own types
    if (name.starts_with(module))
      for (auto [known, type] : kStorages)
        if (name.substr(module.size()) == known) return kStorage + int64_t(type);
  return std::nullopt;
}

struct Storage {
  std::string_view key;
  Stored type;
  uint64_t elements;
  const uint8_t* data = nullptr;
};

struct TensorView {  // a tensor
  size_t storage;
  int64_t offset;
  Shape shape, strides;
};

class PthReader {
 public:
  explicit PthReader(const std::string& path)
      : file_(std::make_shared<MappedFile>(path)),
        where_(concat("weights: ", printable(path), ": ")),
        bytes_(file_->text()),
        pickle_({.global =
                     [this](std::string_view name) {
                       std::optional<int64_t> known = allowed(name);
                       return known || !script_ ? known : allowed_in_script(name);
                     },
                 .call = [this](Pickle&, int64_t g, auto args) { return call(g, args); },
                 .build = [this](Pickle&, Value v, Value state) { build(v, state); },
                 .persistent = [this](Pickle&, Value id) { return storage(id); },
                 .advice = "Save only model.state_dict(), or convert the file to safetensors"},
                where_) {}

  Contents read() {
    Value root;
    if (bytes_.starts_with(kZipStart))
      root = read_zip_file();
    else if (is_legacy_pth(bytes_))
      root = read_legacy_file();
    else {  // say what it would have called, if anything
      pickle_.read(bytes_);
      pickle_.refuse("a plain pickle, not a file of torch.save");
    }
    return weights(root);
  }

 private:
  // Objects of the pickle by number: tensors from 0, storages and modules from here.
  static constexpr int64_t kFirstStorage = int64_t(1) << 40, kFirstModule = int64_t(1) << 41;

  // --- the pickle's calls ---

  int64_t whole_number(Value v, const char* what) {
    if (!v.is(Value::integer) || v.number < 0)
      pickle_.refuse(v.is(Value::integer) ? concat("a tensor with negative ", what, " ", v.number)
                                          : concat("a tensor whose ", what, " is no whole number"));
    return v.number;
  }
  std::vector<int64_t> whole_numbers(Value v, const char* what) {
    if (!v.is(Value::tuple) && !v.is(Value::list))
      pickle_.refuse(concat("a tensor whose ", what, " is no tuple"));
    std::vector<int64_t> out;
    for (Value item : pickle_.items(v)) out.push_back(whole_number(item, what));
    return out;
  }

  // ('storage', type, key, location, number of elements[, view]) -> a storage; the legacy container
  // has the view, which only files of PyTorch 0.x use.
  Value storage(Value id) {
    if (!id.is(Value::tuple)) pickle_.refuse("a storage that is no tuple");
    const std::vector<Value>& f = pickle_.items(id);
    if (f.size() < 5 || f.size() > 6 || !f[0].is(Value::text) || f[0].view() != "storage" ||
        !f[1].is(Value::global) || f[1].number < kStorage || !f[2].is(Value::text))
      pickle_.refuse("a reference to something other than a tensor's storage");
    if (f.size() == 6 && !f[5].is(Value::none))
      pickle_.refuse("storages that are views of others; save the file again with torch.save");
    Storage s{f[2].view(), Stored(f[1].number - kStorage),
              uint64_t(whole_number(f[4], "storage size"))};
    auto [found, is_new] = by_key_.emplace(s.key, storages_.size());
    if (is_new) {
      storages_.push_back(s);
    } else {
      const Storage& old = storages_[found->second];
      if (old.type != s.type || old.elements != s.elements)
        pickle_.refuse(concat("storage '", printable(s.key), "' is described in two ways"));
    }
    return Value::of(Value::object, kFirstStorage + int64_t(found->second));
  }

  Value call(int64_t global, std::span<const Value> args) {
    switch (global) {
      case kOrderedDict:
        return ordered_dict(args);
      case kRebuildTensor:
        return tensor(args);
      case kRebuildParameter:  // (tensor, requires_grad, hooks)
        if (args.empty() || !args[0].is(Value::object) || args[0].number >= kFirstStorage)
          pickle_.refuse("a parameter that is no tensor");
        return args[0];
      case kSize:
        if (args.size() != 1 || (!args[0].is(Value::tuple) && !args[0].is(Value::list)))
          pickle_.refuse("a torch.Size that is no tuple");
        return args[0];
      case kNamespace:  // options of a training script, which nothing here asks for
        return pickle_.make(Value::dict);
      case kScriptList:
        if (args.empty()) pickle_.refuse("a damaged list");
        return args[0];
      case kScriptModule:
        modules_.emplace_back();
        return Value::of(Value::object, kFirstModule + int64_t(modules_.size() - 1));
      default:
        pickle_.refuse("calls the type of a storage");
    }
  }

  // A TorchScript module gets its attributes as a dictionary.
  void build(Value module, Value attributes) {
    if (!is_module(module) || !attributes.is(Value::dict))
      pickle_.refuse("sets the state of an object");
    modules_[size_t(module.number - kFirstModule)] = attributes;
  }

  // () or, in files of Python 2, ([[key, value], ...],)
  Value ordered_dict(std::span<const Value> args) {
    std::vector<Value> items;
    if (!args.empty()) {
      if (args.size() > 1 || !args[0].is(Value::list)) pickle_.refuse("a damaged OrderedDict");
      for (Value pair : pickle_.items(args[0])) {
        if (!pair.is(Value::list) && !pair.is(Value::tuple))
          pickle_.refuse("a damaged OrderedDict");
        const std::vector<Value>& both = pickle_.items(pair);
        if (both.size() != 2) pickle_.refuse("a damaged OrderedDict");
        items.insert(items.end(), both.begin(), both.end());
      }
    }
    return pickle_.make(Value::dict, std::move(items));
  }

  // (storage, offset, size, stride, ...); everything in elements.
  Value tensor(std::span<const Value> args) {
    if (args.size() < 4 || !args[0].is(Value::object) || args[0].number < kFirstStorage ||
        args[0].number >= kFirstModule)
      pickle_.refuse("a tensor without a storage");
    TensorView v;
    v.storage = size_t(args[0].number - kFirstStorage);
    const Storage& s = storages_[v.storage];
    const std::string what = concat(where_, "a tensor in storage '", printable(s.key), "': ");
    v.offset = whole_number(args[1], "offset");
    std::vector<int64_t> strides = whole_numbers(args[3], "stride");
    v.shape = checked_shape(whole_numbers(args[2], "dimension"), what);
    checked_bytes(v.shape, size_of(s.type), what);
    if (int(strides.size()) != v.shape.rank)
      fail_input(what, "shape ", v.shape, " with ", strides.size(), " strides");
    v.strides = Shape(std::span<const int64_t>(strides));
    int64_t last = v.offset;
    bool overflow = false;
    for (int d = 0; d < v.shape.rank; d++) {
      int64_t step;
      overflow |= __builtin_mul_overflow(std::max<int64_t>(v.shape.dims[d] - 1, 0),
                                         v.strides.dims[d], &step) ||
                  __builtin_add_overflow(last, step, &last);
    }
    if (v.shape.numel() > 0 && (overflow || uint64_t(last) >= s.elements))
      fail_input(what, "offset ", v.offset, ", shape ", v.shape, " and strides ", v.strides,
                 " reach beyond its ", s.elements, " elements");
    views_.push_back(v);
    return Value::of(Value::object, int64_t(views_.size() - 1));
  }

  // --- the containers ---

  void place(Storage& s, std::string_view bytes) {
    uint64_t needed;
    if (__builtin_mul_overflow(s.elements, size_of(s.type), &needed) || needed > bytes.size())
      pickle_.refuse(concat("storage '", printable(s.key), "' holds ", bytes.size(),
                            " bytes, too few for ", s.elements, " elements of ", name_of(s.type)));
    s.data = reinterpret_cast<const uint8_t*>(bytes.data());
  }

  Value read_zip_file() {
    zip_ = std::make_shared<ZipFile>(*file_, where_);
    const std::string kName = "/data.pkl";
    std::string folder;
    int found = 0;
    for (const std::string& name : zip_->names())
      if (name.ends_with(kName) && name.find('/') == name.size() - kName.size()) {
        folder = name.substr(0, name.size() - kName.size());
        found++;
      }
    if (found != 1)
      pickle_.refuse("a zip archive, but not of torch.save (it needs one record NAME/data.pkl)");
    // A TorchScript archive holds its program beside the values; it is not looked at.
    script_ = zip_->has(folder + "/constants.pkl");
    if (zip_->has(folder + "/byteorder") && zip_->content(folder + "/byteorder") != "little")
      pickle_.refuse("written on a big-endian machine; save it again on a little-endian one");
    std::string_view pickle = zip_->content(folder + kName);
    Value root = pickle_.read(pickle);
    for (Storage& s : storages_) {
      std::string record = concat(folder, "/data/", s.key);
      if (!zip_->has(record))
        pickle_.refuse(concat("the record of storage '", printable(s.key), "' is missing"));
      place(s, zip_->content(record));
    }
    container_ = script_ ? "TorchScript" : "PyTorch zip";
    return root;
  }

  // Pickles: magic number, protocol version, machine, object, list of storage keys; then for each
  // key the number of elements and the values.
  Value read_legacy_file() {
    pickle_.read(bytes_);
    Value version = pickle_.read(bytes_);
    if (!version.is(Value::integer) || version.number != 1001)
      pickle_.refuse("an unknown version of PyTorch's legacy container");
    Value machine = pickle_.read(bytes_);
    const Value* little =
        machine.is(Value::dict) ? pickle_.find(machine, "little_endian") : nullptr;
    if (little && little->is(Value::boolean) && !little->number)
      pickle_.refuse("written on a big-endian machine; save it again on a little-endian one");
    Value root = pickle_.read(bytes_), keys = pickle_.read(bytes_);
    if (!keys.is(Value::list)) pickle_.refuse("the list of storages is missing");
    for (Value key : pickle_.items(keys)) {
      auto found = key.is(Value::text) ? by_key_.find(key.view()) : by_key_.end();
      if (found == by_key_.end()) pickle_.refuse("the list of storages names an unknown one");
      Storage& s = storages_[found->second];
      uint64_t elements = 0;
      if (bytes_.size() < 8) pickle_.refuse("the file is cut off");
      memcpy(&elements, bytes_.data(), 8);
      bytes_.remove_prefix(8);
      if (elements != s.elements || s.data)
        pickle_.refuse(concat("storage '", printable(s.key), "' is described in two ways"));
      place(s, bytes_);
      bytes_.remove_prefix(s.elements * size_of(s.type));
    }
    for (const Storage& s : storages_)
      if (!s.data) pickle_.refuse(concat("storage '", printable(s.key), "' is missing"));
    container_ = "PyTorch legacy";
    return root;
  }

  // --- the state dict ---

  bool is_tensor(Value v) const { return v.is(Value::object) && v.number < kFirstStorage; }
  bool holds_tensors(Value dict) const {
    if (!dict.is(Value::dict)) return false;
    const std::vector<Value>& items = pickle_.items(dict);
    for (size_t i = 1; i < items.size(); i += 2)
      if (is_tensor(items[i])) return true;
    return false;
  }

  bool is_module(Value v) const { return v.is(Value::object) && v.number >= kFirstModule; }

  // The tensors of a TorchScript module and of those in it as a dictionary of full names.
  Value flattened(Value root) {
    std::vector<Value> named;
    std::vector<bool> seen(modules_.size());
    std::vector<std::pair<std::string, Value>> open{{"", root}};
    while (!open.empty()) {
      auto [prefix, module] = open.back();
      open.pop_back();
      size_t number = size_t(module.number - kFirstModule);
      if (seen[number] || modules_[number].is(Value::none)) continue;
      seen[number] = true;
      const std::vector<Value>& attributes = pickle_.items(modules_[number]);
      size_t first_inner = open.size();
      for (size_t i = 0; i + 1 < attributes.size(); i += 2) {
        Value key = attributes[i], value = attributes[i + 1];
        if (!key.is(Value::text) || !(is_tensor(value) || is_module(value))) continue;
        script_bytes_ += prefix.size() + key.length + 1;
        if (script_bytes_ > file_->size() + (uint64_t(1) << 24))
          pickle_.refuse("names longer than the file justifies");
        std::string name = concat(prefix, key.view());
        if (is_module(value)) {
          open.emplace_back(name + ".", value);
        } else {
          script_names_.push_back(std::move(name));
          Value text;
          text.kind = Value::text;
          text.data = script_names_.back().data();
          text.length = uint32_t(script_names_.back().size());
          named.insert(named.end(), {text, value});
        }
      }
      std::reverse(open.begin() + int64_t(first_inner), open.end());  // the first is next
    }
    return pickle_.make(Value::dict, std::move(named));
  }

  Contents weights(Value root) {
    if (is_module(root)) root = flattened(root);
    if (!root.is(Value::dict)) pickle_.refuse("holds no dictionary of tensors");
    Value chosen = root;
    for (const char* key : {"state_dict_ema", "model_ema", "state_dict", "model",
                            "model_state_dict", "teacher", "student"}) {
      const Value* inner = pickle_.find(root, key);
      if (inner && holds_tensors(*inner)) {
        chosen = *inner;
        container_ += concat(", entry ", key);
        break;
      }
    }
    std::map<std::string, std::string> metadata;
    for (size_t i = 0; i + 1 < pickle_.items(root).size(); i += 2)
      describe(pickle_.items(root)[i], pickle_.items(root)[i + 1], metadata);

    std::vector<StoredTensor> tensors;
    // Views of stride 0 can be larger than the file. What reading every tensor would need is
    // bounded by what sharing weights can explain.
    uint64_t total = 0, most = 4 * file_->size() + (uint64_t(1) << 20);
    const std::vector<Value>& items = pickle_.items(chosen);
    for (size_t i = 0; i + 1 < items.size(); i += 2) {
      if (!is_tensor(items[i + 1])) continue;
      if (!items[i].is(Value::text)) pickle_.refuse("a tensor without a name");
      const TensorView& v = views_[size_t(items[i + 1].number)];
      const Storage& s = storages_[v.storage];
      StoredTensor t{std::string(items[i].view()), s.type, v.shape, v.strides, nullptr};
      if (v.shape.numel() > 0) t.first = s.data + uint64_t(v.offset) * size_of(s.type);
      uint64_t bytes = uint64_t(v.shape.numel()) * size_of(s.type);
      if (bytes > most || (total += bytes) > most)
        pickle_.refuse(concat("tensor '", printable(t.name), "' of shape ", concat(v.shape),
                              " repeats its values to more than the file justifies"));
      tensors.push_back(std::move(t));
    }
    if (tensors.empty()) pickle_.refuse(concat("holds no tensors by name; ", keys_of(root)));
    return {{file_}, {zip_}, std::move(tensors), std::move(metadata), container_};
  }

  // Scalars beside the tensors: epoch, accuracy, architecture.
  static void describe(Value key, Value v, std::map<std::string, std::string>& metadata) {
    if (!key.is(Value::text)) return;
    std::string name(key.view());
    if (v.is(Value::text)) metadata[name] = std::string(v.view());
    if (v.is(Value::integer)) metadata[name] = concat(v.number);
    if (v.is(Value::real)) metadata[name] = concat(v.value);
    if (v.is(Value::boolean)) metadata[name] = v.number ? "true" : "false";
  }

  std::string keys_of(Value dict) {
    std::string out;
    const std::vector<Value>& items = pickle_.items(dict);
    for (size_t i = 0; i < items.size() && out.size() < 200; i += 2)
      if (items[i].is(Value::text))
        out += concat(out.empty() ? "" : ", ", printable(items[i].view()));
    return out.empty() ? "it is empty" : concat("its entries are ", out);
  }

  std::shared_ptr<const MappedFile> file_;
  std::string where_;
  std::string_view bytes_;
  Pickle pickle_;
  std::string container_;
  std::vector<Storage> storages_;
  std::map<std::string_view, size_t> by_key_;
  std::vector<TensorView> views_;
  // Of TorchScript: the attributes of each module, none until it has them.
  bool script_ = false;
  std::shared_ptr<ZipFile> zip_;
  std::vector<Value> modules_;
  std::deque<std::string> script_names_;
  uint64_t script_bytes_ = 0;
};

}  // namespace

Contents read_pth(const std::string& path) { return PthReader(path).read(); }

}  // namespace pupil::data
