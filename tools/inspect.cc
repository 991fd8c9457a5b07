#include "inspect.h"

#include <CLI/CLI.hpp>
#include <bit>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../data/data.h"
#include "../data/file.h"
#include "../data/sha256.h"
#include "../data/weights.h"
#include "text.h"

namespace pupil {
namespace {

using Json = nlohmann::ordered_json;

std::string size_text(uint64_t bytes) {
  std::ostringstream out;
  out.setf(std::ios::fixed);
  out.precision(1);
  if (bytes < 1000) return concat(bytes, " bytes");
  if (bytes < 1000000)
    out << double(bytes) / 1e3 << " kB";
  else
    out << double(bytes) / 1e6 << " MB";
  return out.str();
}

// Names in a file need not be UTF-8 in every container.
void print(const Json& json) {
  std::cout << json.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
}

void inspect_npy(const std::string& path, const data::MappedFile& file, bool as_json) {
  Tensor t = data::read_npy(path);
  data::Sha256 sum;
  sum.add(file.data(), file.size());
  if (as_json)
    return print({{"file", path},
                  {"container", "npy"},
                  {"shape", sizes_of(t.shape())},
                  {"read_as", name_of(t.dtype())},
                  {"values", t.numel()},
                  {"bytes", file.size()},
                  {"sha256", sum.hex()}});
  std::cout << data::printable(path) << ": npy array " << t.shape() << ", read as "
            << name_of(t.dtype()) << "\n"
            << t.numel() << " values, " << size_text(file.size()) << "\nsha256 " << sum.hex()
            << "\n";
}

// The rows of a feature file that are filled; nothing for any other file.
std::optional<int64_t> filled_rows(const data::Weights& weights) {
  auto format = weights.metadata().find("format");
  if (format == weights.metadata().end() || !format->second.starts_with("pupil-features-"))
    return std::nullopt;
  data::FeatureFile checked(weights.path());
  int64_t count = 0;
  for (uint8_t byte : weights.bytes("present")) count += std::popcount(byte);
  return count;
}

void inspect_weights(const std::string& path, bool as_json) {
  auto weights = data::open_weights(path);
  auto rows = filled_rows(*weights);
  int64_t values = 0;
  for (const data::TensorInfo& t : weights->list()) values += t.shape.numel();
  std::string hash = weights->hash();
  if (as_json) {
    Json tensors = Json::array();
    for (const data::TensorInfo& t : weights->list())
      tensors.push_back({{"name", t.name}, {"dtype", t.dtype}, {"shape", sizes_of(t.shape)}});
    Json all = {{"file", path},
                {"container", weights->container()},
                {"metadata", weights->metadata()},
                {"tensors", tensors},
                {"values", values},
                {"sha256", hash}};
    if (rows) all["rows_present"] = *rows;
    return print(all);
  }
  std::cout << data::printable(path) << ": " << weights->container()
            << (rows ? ", features of a teacher" : "") << "\n";
  for (const auto& [key, value] : weights->metadata())
    std::cout << "  " << padded(data::printable(key), 20) << data::printable(value) << "\n";
  if (rows) std::cout << "  " << padded("rows present", 20) << *rows << "\n";
  for (const data::TensorInfo& t : weights->list())
    std::cout << padded(data::printable(t.name), 44) << padded(t.dtype, 6) << t.shape << "\n";
  std::cout << weights->list().size() << " tensors, " << values << " values\nsha256 " << hash
            << "  (names, types, shapes and values)\n";
}

void inspect(const std::string& path, bool as_json) {
  data::MappedFile file(path);
  std::string_view start(reinterpret_cast<const char*>(file.data()),
                         std::min<size_t>(file.size(), 6));
  if (start == "\x93NUMPY")
    inspect_npy(path, file, as_json);
  else
    inspect_weights(path, as_json);
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "inspect", "what a checkpoint, feature file or .npy array holds; nothing in it is run");
  command->footer("Example:\n  pupil inspect resnet20.th");
  struct Arguments {
    std::string path;
    bool as_json = false;
  };
  auto a = std::make_shared<Arguments>();
  command->add_option("FILE", a->path, "safetensors, PyTorch (.pth, .pt, .th) or .npy")->required();
  command->add_flag("--json", a->as_json, "for machines");
  command->callback([a] { inspect(a->path, a->as_json); });
}

}  // namespace pupil
