// CIFAR-10 and CIFAR-100 (Krizhevsky 2009): the binary records.
#include <algorithm>
#include <filesystem>

#include "file.h"
#include "sources.h"

namespace fs = std::filesystem;

namespace pupil::data {
namespace {

constexpr size_t kPixels = 3 * 32 * 32;

struct Files {
  std::vector<std::string> paths;
  fs::path folder;
};

Files find_files(const Spec& spec, bool train) {
  bool ten = spec.kind == "cifar10";
  std::error_code error;
  for (const char* below : {"", "cifar-10-batches-bin", "cifar-100-binary"}) {
    Files found;
    found.folder = *below ? fs::path(spec.path) / below : fs::path(spec.path);
    auto add = [&](const std::string& name) {
      if (fs::exists(found.folder / name, error))
        found.paths.push_back((found.folder / name).string());
    };
    if (!ten)
      add(train ? "train.bin" : "test.bin");
    else if (!train)
      add("test_batch.bin");
    else
      for (int k = 1; k <= 5; k++) add(concat("data_batch_", k, ".bin"));
    if (!found.paths.empty()) return found;
  }
  if (!fs::is_directory(spec.path, error))
    fail_input("data: no folder ", spec.path, " for ", spec.kind,
               "; unpack the archive of the binary or the Python version and name its folder");
  const char* expected = ten ? (train ? "data_batch_1.bin ... data_batch_5.bin" : "test_batch.bin")
                             : (train ? "train.bin" : "test.bin");
  fail_input("data: ", spec.path, " has no ", expected,
             "; unpack the archive of the binary or the Python version and name its folder");
}

// Lines of the first of these files that exists; exactly `count` of them, else no names.
std::vector<std::string> read_names(const fs::path& folder, std::span<const char* const> files,
                                    size_t count) {
  for (const char* file : files) {
    fs::path path = folder / file;
    std::error_code error;
    if (!fs::exists(path, error)) continue;
    MappedFile text(path.string());
    std::vector<std::string> names(1);
    for (char c : std::string_view(reinterpret_cast<const char*>(text.data()), text.size())) {
      if (c == '\n')
        names.emplace_back();
      else if (c != '\r')
        names.back() += c;
    }
    while (!names.empty() && names.back().empty()) names.pop_back();
    if (names.size() == count) return names;
  }
  return {};
}

}  // namespace

Dataset open_cifar(const Spec& spec) {
  if (spec.split == "val")
    fail_input("data: ", spec.kind, " has the splits train and test, not val");
  bool ten = spec.kind == "cifar10", train = spec.split != "test";
  Files found = find_files(spec, train);
  // CIFAR-100 records start with the coarse label, then the fine one, which is the class.
  size_t record = kPixels + (ten ? 1 : 2);
  auto pixels = std::make_shared<Bytes>();
  std::vector<int64_t> labels;
  int64_t classes = ten ? 10 : 100;
  for (const std::string& path : found.paths) {
    MappedFile bytes(path);
    if (!bytes.size() || bytes.size() % record)
      fail_input("data: ", path, " has ", bytes.size(),
                 " bytes, which is not a positive multiple of ", "the ", record, " bytes of a ",
                 spec.kind, " record; fetch the file again");
    size_t n = bytes.size() / record, before = labels.size();
    pixels->resize((before + n) * kPixels);
    for (size_t i = 0; i < n; i++) {
      const uint8_t* r = bytes.data() + i * record;
      labels.push_back(r[record - kPixels - 1]);
      std::copy_n(r + record - kPixels, kPixels, pixels->data() + (before + i) * kPixels);
    }
    check_labels(std::span(labels).subspan(before), classes, path);
  }
  if (ten && train && found.paths.size() != 5)
    fprintf(stderr, "note: %s has %zu of the 5 training files of cifar10: %zu images\n",
            found.folder.c_str(), found.paths.size(), labels.size());
  Dataset set = from_pixels({pixels, pixels->data(), 32, 32, 3, true}, std::move(labels), classes,
                            found.folder.string());
  static constexpr const char* kTen[] = {"batches.meta.txt"};
  static constexpr const char* kHundred[] = {"fine_label_names.txt"};
  set.class_names = read_names(found.folder, ten ? kTen : kHundred, size_t(classes));
  return set;
}

}  // namespace pupil::data
