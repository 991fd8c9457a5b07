// A folder of images with one sub-folder per class, read as torchvision's ImageFolder does: classes
// and files in the order of their names.
#include <algorithm>
#include <filesystem>

#include "file.h"
#include "sha256.h"
#include "sources.h"

namespace fs = std::filesystem;

namespace pupil::data {
namespace {

std::vector<std::string> sub_folders(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename().string();
    if (it->is_directory(error) && name[0] != '.') names.push_back(name);
  }
  if (error) fail_input("data: cannot list ", folder.string(), ": ", error.message());
  std::sort(names.begin(), names.end());
  return names;
}

bool is_split(const std::string& name) {
  return name == "train" || name == "test" || name == "val";
}

// The folder that holds the class folders of this split.
fs::path split_folder(const Spec& spec) {
  fs::path root(spec.path);
  std::error_code error;
  if (!fs::is_directory(root, error)) fail_input("data: no folder ", spec.path);
  std::vector<std::string> names = sub_folders(root);
  auto has = [&](const char* name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  // A class may be called "train": only folders of nothing but splits are taken as such unasked.
  bool splits = !names.empty() && std::all_of(names.begin(), names.end(), is_split);
  if (spec.split.empty()) return splits && has("train") ? root / "train" : root;
  if (has(spec.split.c_str())) return root / spec.split;
  if (spec.split == "train" && !splits) return root;  // one folder of classes is all there is
  if (spec.split != "train")
    for (const char* other : {"test", "val"})
      if (has(other)) return root / other;
  fail_input(
      "data: ", spec.path, " has no folder ", spec.split,
      "; make one with a sub-folder per class, or hold samples of train back for validation");
}

// Every file below, sorted, hidden ones left out.
std::vector<std::string> files_below(const fs::path& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    bool hidden = it->path().filename().string()[0] == '.';
    if (it->is_directory(error)) {
      if (hidden) it.disable_recursion_pending();
    } else if (!hidden) {
      files.push_back(it->path().string());
    }
  }
  if (error) fail_input("data: cannot list ", folder.string(), ": ", error.message());
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

Dataset open_folder(const Spec& spec, bool strict) {
  fs::path folder = split_folder(spec);
  Dataset set;
  // The classes are those of train, so that a test folder without one of them keeps the numbering.
  std::error_code error;
  fs::path train = fs::path(spec.path) / "train";
  bool has_train = is_split(folder.filename().string()) && fs::is_directory(train, error);
  set.class_names = sub_folders(has_train ? train : folder);
  set.classes = int64_t(set.class_names.size());
  if (!set.classes)
    fail_input("data: ", folder.string(),
               " has no sub-folders; put the images of each class into a folder of its own");
  for (const std::string& name : sub_folders(folder))
    if (!std::binary_search(set.class_names.begin(), set.class_names.end(), name))
      fail_input("data: ", (folder / name).string(), " is a class that ", train.string(),
                 " does not have");

  auto files = std::make_shared<std::vector<std::string>>();
  Sha256 sha;
  for (size_t c = 0; c < set.class_names.size(); c++) {
    fs::path class_folder = folder / set.class_names[c];
    if (!fs::is_directory(class_folder, error)) continue;
    for (const std::string& path : files_below(class_folder)) {
      try {
        MappedFile file(path);
        if (std::string defect = image_defect({file.data(), file.size()}); !defect.empty())
          fail_input(path, ": ", defect);
        int64_t about[2] = {int64_t(c), int64_t(file.size())};
        sha.add(about, sizeof about);
        sha.add(file.data(), file.size());
      } catch (const InputError& problem) {
        if (strict)
          fail_input("data: unreadable image ", problem.what(),
                     "; remove or replace it, or run without --strict (data.strict = false)");
        // The first few by name; a folder of another format would print a line for every file.
        if (set.unreadable++ < 10) say_once(concat("warning: skipped ", problem.what()));
        continue;
      }
      files->push_back(path);
      set.labels.push_back(int64_t(c));
    }
  }
  if (set.unreadable)
    say_once(concat("warning: ", folder.string(), ": ", set.unreadable,
                    " unreadable files skipped, ", files->size(), " images read"));
  if (files->empty()) fail_input("data: ", folder.string(), " has no PNG or JPEG images");
  set.hash = sha.hex();
  number_rows(set);
  set.image = [files](int64_t i, Image& out) {
    MappedFile file((*files)[size_t(i)]);
    decode_image({file.data(), file.size()}, file.path(), false, out);
  };
  return set;
}

}  // namespace pupil::data
