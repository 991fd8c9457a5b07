// A folder of images with one sub-folder per class, read as torchvision's ImageFolder does: classes
// and files in the order of their names. And one of images that nobody has sorted.
#include <algorithm>
#include <filesystem>
#include <numeric>

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

bool has_image_suffix(const std::string& path) {
  std::string suffix = fs::path(path).extension().string();
  for (char& c : suffix) c = char(std::tolower(uint8_t(c)));
  return suffix == ".jpg" || suffix == ".jpeg" || suffix == ".png";
}

// The readable ones of these files; `seen` is told of each.
template <class F>
void add_images(const std::vector<std::string>& files, bool strict, Dataset& set, F&& seen) {
  for (const std::string& path : files) {
    try {
      MappedFile file(path);
      if (std::string defect = image_defect({file.data(), file.size()}); !defect.empty())
        fail_input(path, ": ", defect);
      seen(file);
    } catch (const InputError& problem) {
      if (strict)
        fail_input("data: unreadable image ", problem.what(),
                   "; remove or replace it, or run without --strict (data.strict = false)");
      // The first few by name; a folder of another format would print a line for every file.
      if (set.unreadable++ < 10) say_once(concat("warning: skipped ", problem.what()));
      continue;
    }
    set.paths.push_back(path);
  }
}

void finish(const std::string& folder, Dataset& set) {
  if (set.unreadable)
    say_once(concat("warning: ", folder, ": ", set.unreadable, " unreadable files skipped, ",
                    set.paths.size(), " images read"));
  if (set.paths.empty()) fail_input("data: ", folder, " has no PNG or JPEG images");
  number_rows(set);
  auto files = std::make_shared<const std::vector<std::string>>(set.paths);
  set.image = [files](int64_t i, Image& out) {
    MappedFile file((*files)[size_t(i)]);
    decode_image({file.data(), file.size()}, file.path(), false, out);
  };
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

  Sha256 sha;
  for (size_t c = 0; c < set.class_names.size(); c++) {
    fs::path class_folder = folder / set.class_names[c];
    if (!fs::is_directory(class_folder, error)) continue;
    add_images(files_below(class_folder), strict, set, [&](const MappedFile& file) {
      int64_t about[2] = {int64_t(c), int64_t(file.size())};
      sha.add(about, sizeof about);
      sha.add(file.data(), file.size());
      set.labels.push_back(int64_t(c));
    });
  }
  finish(folder.string(), set);
  set.hash = sha.hex();
  return set;
}

namespace {

// All images of a folder and the SHA-256 of each. A training opens its two parts, and several
// trainings the same ones; the bytes are read again only where a file has changed.
struct Unlabeled {
  std::vector<std::tuple<std::string, uint64_t, fs::file_time_type>> files;
  bool strict = false;
  Dataset set;
  std::vector<std::string> digests;
};

const Unlabeled& read_unlabeled(const std::string& folder, bool strict) {
  static Unlabeled last;
  std::error_code error;
  if (!fs::is_directory(folder, error)) fail_input("data: no folder ", folder);
  std::vector<std::string> images, all = files_below(folder);
  std::copy_if(all.begin(), all.end(), std::back_inserter(images), has_image_suffix);
  if (images.size() < all.size())
    say_once(concat("warning: ", folder, ": ", all.size() - images.size(),
                    " files that are not called *.jpg, *.jpeg or *.png left out"));
  Unlabeled now;
  now.strict = strict;
  for (const std::string& path : images)
    now.files.emplace_back(path, fs::file_size(path, error), fs::last_write_time(path, error));
  if (!now.files.empty() && now.files == last.files && strict == last.strict) return last;
  Sha256 sum;
  add_images(images, strict, now.set, [&](const MappedFile& file) {
    Sha256 one;
    one.add(file.data(), file.size());
    now.digests.push_back(one.hex());
    sum.add(now.digests.back().data(), now.digests.back().size());
    now.set.labels.push_back(0);
  });
  finish(folder, now.set);
  now.set.hash = sum.hex();
  return last = std::move(now);
}

}  // namespace

Dataset open_unlabeled(const Spec& spec, bool strict) {
  if (spec.split == "test")
    fail_input("data: '", spec.text, "': unlabeled images have the splits train and val");
  const Unlabeled& all = read_unlabeled(spec.path, strict);
  if (spec.split.empty()) return all.set;
  const std::vector<std::string>& digests = all.digests;
  std::vector<int64_t> order(digests.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return std::tie(digests[size_t(a)], a) < std::tie(digests[size_t(b)], b);
  });
  size_t held_out = std::max<size_t>((order.size() + 5) / 10, 1);
  while (held_out < order.size() &&
         digests[size_t(order[held_out])] == digests[size_t(order[held_out - 1])])
    held_out++;  // a copy of the last one
  if (spec.split == "val")
    order.resize(held_out);
  else
    order.erase(order.begin(), order.begin() + int64_t(held_out));
  std::sort(order.begin(), order.end());
  return select(all.set, order);
}

}  // namespace pupil::data
