// Checkpoints made of others: several read as one, one with a few tensors changed.
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
  Tensor view(std::string_view name, DType dtype) const override {
    auto [file, own] = owner(name);
    return file->view(own, dtype);
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

class Amended : public Weights {
 public:
  Amended(std::shared_ptr<const Weights> file, std::map<std::string, Tensor> tensors,
          std::map<std::string, std::string> metadata)
      : file_(std::move(file)),
        tensors_(tensors.begin(), tensors.end()),
        metadata_(std::move(metadata)) {
    for (TensorInfo info : file_->list()) {  // the type of the stored one stays
      if (auto mine = tensors.extract(info.name)) info.shape = mine.mapped().shape();
      list_.push_back(std::move(info));
    }
    for (auto& [name, value] : tensors)
      list_.push_back({name, value.shape(), list_.empty() ? "F32" : list_[0].dtype});
  }
  const std::vector<TensorInfo>& list() const override { return list_; }
  bool has(std::string_view name) const override {
    return tensors_.find(name) != tensors_.end() || file_->has(name);
  }
  Tensor view(std::string_view name, DType dtype) const override {
    auto mine = tensors_.find(name);
    return mine == tensors_.end() ? file_->view(name, dtype) : mine->second.to(dtype);
  }
  std::span<const uint8_t> bytes(std::string_view name) const override {
    if (tensors_.find(name) != tensors_.end()) return {};
    return file_->bytes(name);
  }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }
  const std::string& path() const override { return file_->path(); }
  std::string container() const override { return file_->container(); }
  std::string hash() const override {
    Sha256 sha;
    std::string own = file_->hash();
    sha.add(own.data(), own.size());
    for (auto& [name, value] : tensors_) {
      Tensor values = value.contiguous();
      sha.add(name.data(), name.size());
      sha.add(values.raw(), values.bytes());
    }
    return sha.hex();
  }

 private:
  std::shared_ptr<const Weights> file_;
  std::map<std::string, Tensor, std::less<>> tensors_;
  std::vector<TensorInfo> list_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace

std::shared_ptr<const Weights> amend_weights(std::shared_ptr<const Weights> file,
                                             std::map<std::string, Tensor> tensors,
                                             std::map<std::string, std::string> metadata) {
  return std::make_shared<Amended>(std::move(file), std::move(tensors), std::move(metadata));
}

std::shared_ptr<const Weights> join_weights(std::vector<std::shared_ptr<const Weights>> files,
                                            std::map<std::string, std::string> metadata) {
  return std::make_shared<Joined>(std::move(files), std::move(metadata));
}

}  // namespace pupil::data
