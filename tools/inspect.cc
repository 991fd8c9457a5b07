#include "inspect.h"

#include <CLI/CLI.hpp>
#include <bit>
#include <future>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../data/convert.h"
#include "../data/data.h"
#include "../data/file.h"
#include "../data/sha256.h"
#include "../models/layout.h"
#include "recognise.h"
#include "text.h"

namespace pupil {
namespace {

using Json = nlohmann::ordered_json;

// Names in a file need not be UTF-8 in every container.
void print(const Json& json) {
  std::cout << json.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
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

// The network whose parameters these are; "" for none, or for several.
std::string network_in(const std::shared_ptr<const data::Weights>& weights) {
  try {
    return recognise(*models::in_our_names(weights));
  } catch (const InputError&) {
    return "";
  }
}

// What a person should know before using the tensor; "" when there is nothing.
std::string remark(const data::Statistics& s, int64_t values) {
  std::string text;
  auto add = [&](const std::string& more) { text += (text.empty() ? "" : ", ") + more; };
  if (s.nan) add(concat(s.nan, " NaN"));
  if (s.infinite) add(concat(s.infinite, " infinite"));
  if (values > 1 && s.zero == values)
    add("all zero");
  else if (values > 1 && s.least == s.most && !s.nan && !s.infinite)
    add("constant");
  return text;
}

void inspect(const std::string& path, bool as_json) {
  auto weights = data::open_weights(path);
  auto rows = filled_rows(*weights);
  std::string network = rows ? "" : network_in(weights);
  int64_t values = 0, suspects = 0;
  auto hash = std::async(std::launch::async, [&] { return weights->hash(); });
  Json tensors = Json::array();
  std::vector<std::vector<std::string>> table;
  for (const data::TensorInfo& t : weights->list()) {
    int64_t n = t.shape.numel();
    values += n;
    data::Statistics s = data::statistics_of(*weights, t);
    std::string note = remark(s, n);
    suspects += s.nan || s.infinite;
    if (as_json)
      tensors.push_back({{"name", t.name},
                         {"dtype", t.dtype},
                         {"shape", sizes_of(t.shape)},
                         {"nan", s.nan},
                         {"infinite", s.infinite},
                         {"zero", s.zero},
                         {"min", s.least},
                         {"max", s.most},
                         {"mean", s.mean},
                         {"std", s.deviation}});
    else
      table.push_back({data::printable(t.name), t.dtype, concat(t.shape), concat(s.least), "to",
                       concat(s.most), "mean", concat(s.mean), "std", concat(s.deviation), note});
  }
  if (as_json) {
    Json all = {{"file", path},        {"container", weights->container()},
                {"network", network},  {"metadata", weights->metadata()},
                {"tensors", tensors},  {"values", values},
                {"sha256", hash.get()}};
    if (rows) all["rows_present"] = *rows;
    return print(all);
  }
  std::cout << data::printable(path) << ": " << weights->container()
            << (rows ? ", features of a teacher" : "") << "\n";
  for (const auto& [key, value] : weights->metadata())
    std::cout << "  " << padded(data::printable(key), 20) << data::printable(value) << "\n";
  if (rows) std::cout << "  " << padded("rows present", 20) << *rows << "\n";
  if (!network.empty()) std::cout << "  " << padded("network", 20) << network << "\n";
  std::cout << aligned(table, {0, 1, 2, 10}) << counted(int64_t(table.size()), "tensor") << ", "
            << values << " values"
            << (suspects ? concat("; not finite in ", counted(suspects, "tensor")) : "")
            << "\nsha256 " << hash.get() << "  (names, types, shapes and values)\n";
}

std::string hash_of_file(const std::string& path) {
  data::MappedFile file(path);
  data::Sha256 sum;
  sum.add(file.data(), file.size());
  return sum.hex();
}

// Prints the SHA-256 of the file, as sha256sum does, or compares it with `wanted`: the hash or its
// first eight or more digits, which some file names carry.
void check_hash(const std::string& path, std::string wanted) {
  std::string hash = hash_of_file(path);
  for (char& c : wanted) c = char(std::tolower(uint8_t(c)));
  if (!wanted.empty() &&
      (wanted.size() < 8 || wanted.find_first_not_of("0123456789abcdef") != std::string::npos))
    fail_input("--hash ", wanted, ": give the SHA-256 as 64 hexadecimal digits, or its first 8");
  if (!hash.starts_with(wanted))
    fail_input(data::printable(path), ": its SHA-256 is ", hash, ", not ", wanted,
               "; it is another file, or damaged");
  std::cout << hash << "  " << data::printable(path) << "\n";
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "inspect",
      "what a checkpoint, feature file or array holds, with statistics; nothing in it is run");
  command->footer(
      "Examples:\n  pupil inspect resnet20.th\n  pupil inspect resnet20.th --hash 12fca82f");
  struct Arguments {
    std::string path, hash;
    bool as_json = false;
  };
  auto a = std::make_shared<Arguments>();
  command
      ->add_option("FILE", a->path,
                   "safetensors, PyTorch (.pth, .pt, .th, .bin; TorchScript), the index.json of a "
                   "sharded checkpoint, a Hugging Face folder, .npz or .npy")
      ->required();
  command->add_flag("--json", a->as_json, "for machines");
  CLI::Option* hash =
      command
          ->add_option("--hash", a->hash,
                       "only print the file's SHA-256, or check it: --hash HEX, behind FILE")
          ->expected(0, 1);
  command->callback([a, hash] {
    if (hash->count())
      check_hash(a->path, a->hash);
    else
      inspect(a->path, a->as_json);
  });
}

}  // namespace pupil
