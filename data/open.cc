// Which reader a file needs, and checkpoints of several files.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "stored.h"
#include "zip.h"

namespace fs = std::filesystem;

namespace pupil::data {
namespace {

// What Hugging Face and open_clip call the weights in a folder, the best first.
constexpr const char* kNames[] = {
    "model.safetensors.index.json", "model.safetensors", "open_clip_model.safetensors",
    "pytorch_model.bin.index.json", "pytorch_model.bin", "open_clip_pytorch_model.bin"};

std::string weights_in(const std::string& folder) {
  std::error_code none;
  std::string list;
  for (const char* name : kNames) {
    if (fs::exists(fs::path(folder) / name, none)) return (fs::path(folder) / name).string();
    list += concat(list.empty() ? "" : ", ", name);
  }
  fail_input("weights: ", printable(folder), ": a folder without weights (", list,
             "); give the file itself");
}

void add_settings(const fs::path& folder, Contents& contents) {
  std::error_code none;
  for (const char* name : kSettings)
    if (fs::exists(folder / name, none))
      contents.metadata[name] = MappedFile((folder / name).string()).text();
}

}  // namespace

bool is_legacy_pth(std::string_view start) {
  // The legacy container begins with a pickle of this number.
  constexpr std::string_view kMagic = "\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
  return start.starts_with('\x80') && start.substr(0, 32).find(kMagic) != start.npos;
}

Contents read_contents(const std::string& path) {
  std::string start;
  bool arrays = false;
  {
    MappedFile file(path);
    start = file.text().substr(0, 32);
    if (start.starts_with("PK\x03\x04")) {
      ZipFile zip(file, concat("weights: ", printable(path), ": "));
      arrays = std::any_of(zip.names().begin(), zip.names().end(),
                           [](const std::string& name) { return name.ends_with(".npy"); });
    }
  }
  if (arrays) return read_npz(path);
  if (start.starts_with("\x93NUMPY")) return read_npy_file(path);
  // The length of a safetensors header can begin as the other formats do, but then '{' follows it.
  bool header_follows = start.size() > 8 && start[8] == '{' && !is_legacy_pth(start);
  if (!header_follows && (start.starts_with("PK\x03\x04") || start.starts_with('\x80')))
    return read_pth(path);
  if (start.starts_with('{')) return read_sharded(path);
  return read_safetensors(path);
}

Contents read_sharded(const std::string& path) {
  const std::string where = concat("weights: ", printable(path), ": ");
  MappedFile file(path);
  // A callback instead of a tree: depth costs no stack.
  std::map<std::string, std::set<std::string>> files;  // file -> names of its tensors
  std::string_view text = file.text();
  nlohmann::json index;
  auto flat = [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) { return depth <= 3; };
  index = nlohmann::json::parse(text.begin(), text.end(), flat, false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    fail_input(where, "a JSON file, but no index of a sharded checkpoint: it has no weight_map");
  for (auto& [name, shard] : index["weight_map"].items()) {
    std::string shard_name = shard.is_string() ? shard.get<std::string>() : "";
    if (shard_name.empty() || shard_name == ".." || shard_name == "." ||
        shard_name.find_first_of("/\\") != std::string::npos)
      fail_input(where, "tensor '", printable(name), "' lies in '", printable(shard_name),
                 "', which is no plain file name");
    files[shard_name].insert(name);
  }
  Contents all;
  for (auto& [shard, names] : files) {
    fs::path place = fs::path(path).parent_path() / shard;
    std::error_code none;
    if (!fs::exists(place, none))
      fail_input(where, "the file ", printable(shard), " that it names is missing");
    MappedFile probe(place.string());  // another index, or this one
    if (probe.text().starts_with('{')) fail_input(where, printable(shard), " is no checkpoint");
    Contents part = read_contents(place.string());
    size_t found = 0;
    for (StoredTensor& t : part.tensors)
      if (names.contains(t.name)) {
        all.tensors.push_back(std::move(t));
        found++;
      }
    if (found < names.size())
      fail_input(where, printable(shard), " has only ", found, " of the ", names.size(),
                 " tensors that it should hold");
    std::move(part.files.begin(), part.files.end(), std::back_inserter(all.files));
    std::move(part.owners.begin(), part.owners.end(), std::back_inserter(all.owners));
    all.metadata.merge(part.metadata);
  }
  all.container = concat("sharded, ", files.size(), files.size() == 1 ? " file" : " files");
  return all;
}

std::shared_ptr<const Weights> open_weights(const std::string& path) {
  std::error_code none;
  bool folder = fs::is_directory(path, none);
  std::string file = folder ? weights_in(path) : path;
  Contents contents = read_contents(file);
  if (folder) contents.container += concat(" (", fs::path(file).filename().string(), ")");
  if (folder || file.ends_with(".index.json")) add_settings(fs::path(file).parent_path(), contents);
  return make_weights(path, std::move(contents));
}

}  // namespace pupil::data
