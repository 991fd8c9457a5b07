// Checkpoints of several networks, read as that of one.
#include <charconv>

#include "sha256.h"
#include "weights.h"

namespace pupil::data {
namespace {

class Joined : public Weights {
 public:
  Joined(std::vector<std::shared_ptr<const Weights>> files,
         std::map<std::string, std::string> metadata)
      : files_(std::move(files)), metadata_(std::move(metadata)) {
    for (size_t k = 0; k < files_.size(); k++) {
      path_ += (k ? "+" : "") + files_[k]->path();
      for (TensorInfo info : files_[k]->list()) {
        info.name = concat(k, ".", info.name);
        list_.push_back(std::move(info));
      }
    }
  }
  const std::vector<TensorInfo>& list() const override { return list_; }
  bool has(std::string_view name) const override {
    auto [file, own] = find(name);
    return file && file->has(own);
  }
  Tensor read(std::string_view name, DType dtype) const override {
    auto [file, own] = owner(name);
    return file->read(own, dtype);
  }
  std::span<const uint8_t> bytes(std::string_view name) const override {
    auto [file, own] = owner(name);
    return file->bytes(own);
  }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }
  const std::string& path() const override { return path_; }
  std::string hash() const override {
    Sha256 sha;
    for (const auto& file : files_) {
      std::string one = file->hash();
      sha.add(one.data(), one.size());
    }
    return sha.hex();
  }

 private:
  std::vector<std::shared_ptr<const Weights>> files_;
  std::vector<TensorInfo> list_;
  std::map<std::string, std::string> metadata_;
  std::string path_;

  // The file of "k.NAME", null when there is none, and NAME.
  std::pair<const Weights*, std::string_view> find(std::string_view name) const {
    size_t k = files_.size(), dot = std::min(name.find('.'), name.size());
    auto [end, error] = std::from_chars(name.data(), name.data() + dot, k);
    if (error != std::errc() || end != name.data() + dot || dot == name.size() ||
        k >= files_.size())
      return {nullptr, name};
    return {files_[k].get(), name.substr(dot + 1)};
  }
  std::pair<const Weights*, std::string_view> owner(std::string_view name) const {
    auto found = find(name);
    if (!found.first) fail_input("weights: ", path_, " have no tensor ", std::string(name));
    return found;
  }
};

}  // namespace

std::shared_ptr<const Weights> join_weights(std::vector<std::shared_ptr<const Weights>> files,
                                            std::map<std::string, std::string> metadata) {
  return std::make_shared<Joined>(std::move(files), std::move(metadata));
}

}  // namespace pupil::data
