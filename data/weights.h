// Checkpoints as named tensors. Nothing here trusts a file: a bad one is refused with an InputError
// that names the file and the reason, before anything is allocated or run.
#pragma once
#include "../tensor/tensor.h"

namespace pupil::data {

struct TensorInfo {
  std::string name;
  Shape shape;
  std::string dtype;  // as stored: "F32", "BF16", "I64", "BOOL", ...
};

// The one virtual interface of the project: a source of named tensors.
class Weights {
 public:
  virtual ~Weights() = default;
  virtual const std::vector<TensorInfo>& list() const = 0;  // in file order, names unique
  virtual bool has(std::string_view name) const = 0;
  // The tensor as `dtype`, on the CPU: f64 and f32 from every type, i64 from integers and BOOL, u8
  // from U8 and BOOL, i32 and bf16 from the same. Throws InputError for an unknown name or a stored
  // type that does not convert. Where the file holds it so it is the mapped file itself, which
  // nobody can write; the last tensor to go gives its pages back.
  virtual Tensor view(std::string_view name, DType dtype) const = 0;
  Tensor read(std::string_view name, DType dtype) const {  // memory of its own
    Tensor t = view(name, dtype);
    return t.sole_owner() ? t : t.clone();
  }
  // The stored values where they lie row-major in the mapped file (always so in safetensors), else
  // empty. At any alignment; valid while this object lives. Throws InputError for an unknown name.
  virtual std::span<const uint8_t> bytes(std::string_view name) const = 0;
  virtual const std::map<std::string, std::string>& metadata() const = 0;
  virtual const std::string& path() const = 0;
  virtual std::string container() const { return ""; }  // "safetensors", "PyTorch zip, entry model"
  // SHA-256 of names, shapes, dtypes and values in name order: the same for one net in two
  // containers when the dtypes agree. Hex. Reads everything, once.
  virtual std::string hash() const = 0;
};

// By content, not by suffix: safetensors (also several files and their index), .npz, a PyTorch file
// (zip or legacy pickle) read by a restricted unpickler, the tensors of a TorchScript archive, a
// folder as Hugging Face keeps them. A prefix "module." or "backbone." shared by all names is
// removed; of a training checkpoint the first of state_dict_ema, model_ema, state_dict, model,
// model_state_dict, teacher, student is taken.
std::shared_ptr<const Weights> open_weights(const std::string& path);
std::shared_ptr<const Weights> open_safetensors(const std::string& path);  // memory-mapped
// Several files as one: the tensor NAME of file k is "k.NAME".
std::shared_ptr<const Weights> join_weights(std::vector<std::shared_ptr<const Weights>>,
                                            std::map<std::string, std::string> metadata);

// `file` with these tensors in place of its own or besides them, and with this metadata.
std::shared_ptr<const Weights> amend_weights(std::shared_ptr<const Weights> file,
                                             std::map<std::string, Tensor> tensors,
                                             std::map<std::string, std::string> metadata);

// Tensors of any float or integer dtype under their names, in the order given. Written to a
// temporary name in the same folder, synced and renamed: the old file stays intact until the new
// one is whole.
void save_safetensors(const std::string& path,
                      const std::vector<std::pair<std::string, Tensor>>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

// .npy (format 1 to 3, C order): f16 becomes f32, small integers become i64 unless u8.
Tensor read_npy(const std::string& path);
// The same, or FILE.npy[ROWS.npy]: the rows of FILE with the numbers in ROWS (integers), in their
// order.
Tensor read_npy_rows(const std::string& name);
void save_npy(const std::string& path, const Tensor&);

}  // namespace pupil::data
