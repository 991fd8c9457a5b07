// MNIST and Fashion-MNIST: idx files (LeCun's format, big-endian), plain or gzip.
#include <algorithm>
#include <filesystem>

#include "gzip.h"
#include "sources.h"

namespace fs = std::filesystem;

namespace pupil::data {
namespace {

uint32_t number(GzipFile& file) {
  uint8_t b[4];
  file.read(b, 4);
  return uint32_t(b[0]) << 24 | uint32_t(b[1]) << 16 | uint32_t(b[2]) << 8 | b[3];
}

// The first folder, of those that downloads and packages use, with a file of images for the split.
std::string find_images(const Spec& spec, bool train) {
  std::error_code error;
  auto matches = [&](std::string name) {
    for (char& c : name)
      if (c == '.') c = '-';  // train-images.idx3-ubyte is in use too
    if (name.ends_with("-gz")) name.resize(name.size() - 3);
    if (!name.ends_with("-images-idx3-ubyte")) return false;
    return (name == "train-images-idx3-ubyte") == train;
  };
  std::string found;
  for (const char* below : {"", "raw", "MNIST/raw", "FashionMNIST/raw"}) {
    fs::path folder = *below ? fs::path(spec.path) / below : fs::path(spec.path);
    for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
      std::string path = it->path().string();
      // Of a plain and a packed copy the plain one: it sorts first.
      if (matches(it->path().filename().string()) && (found.empty() || path < found)) found = path;
    }
    if (!found.empty()) return found;
  }
  std::string advice = spec.kind == "fashion_mnist"
                           ? "; Debian and Ubuntu: apt install dataset-fashion-mnist, then "
                             "fashion_mnist:/usr/share/datasets/fashion-mnist"
                           : "; put the four *-ubyte or *-ubyte.gz files into that folder";
  if (!fs::is_directory(spec.path, error))
    fail_input("data: no folder ", spec.path, " for ", spec.kind, advice);
  fail_input("data: ", spec.path, " has no ", train ? "train" : "t10k", "-images-idx3-ubyte[.gz]",
             advice);
}

}  // namespace

Dataset open_idx(const Spec& spec) {
  if (spec.split == "val")
    fail_input("data: ", spec.kind, " has the splits train and test, not val");
  std::string image_path = find_images(spec, spec.split != "test");
  fs::path folder = fs::path(image_path).parent_path();
  std::string name = fs::path(image_path).filename().string();
  name.replace(name.find("images"), 6, "labels");
  name.replace(name.find("idx3"), 4, "idx1");
  std::string label_path = (folder / name).string();
  if (!fs::exists(label_path)) {  // one packed, the other not
    std::string other = label_path.ends_with(".gz") ? label_path.substr(0, label_path.size() - 3)
                                                    : label_path + ".gz";
    if (!fs::exists(other))
      fail_input("data: ", image_path, " has no labels beside it: ", label_path, " is missing");
    label_path = other;
  }

  GzipFile images(image_path, "an idx file"), label_file(label_path, "an idx file");
  if (uint32_t magic = number(images); magic != 0x803)
    fail_input("data: ", image_path, " is not an idx file of 8-bit images (it starts with ", magic,
               ", 2051 was expected)");
  uint32_t n = number(images), height = number(images), width = number(images);
  if (uint32_t magic = number(label_file); magic != 0x801)
    fail_input("data: ", label_path, " is not an idx file of labels (it starts with ", magic,
               ", 2049 was expected)");
  uint32_t label_count = number(label_file);
  if (n != label_count)
    fail_input("data: ", image_path, " has ", n, " images, ", label_path, " has ", label_count,
               " labels; they do not belong together");
  if (!n || !height || !width || height > 4096 || width > 4096)
    fail_input("data: ", image_path, " claims ", n, " images of ", height, " x ", width,
               " pixels; 1 to 4096 a side are read");

  // A damaged count must not reserve memory: the buffers grow with what the file really holds.
  size_t image_bytes = size_t(height) * width, total = size_t(n) * image_bytes;
  auto pixels = std::make_shared<Bytes>();
  for (size_t done = 0; done < total;) {
    size_t chunk = std::min(total - done, std::max<size_t>(done, 1 << 20));
    pixels->resize(done + chunk);
    images.read(pixels->data() + done, chunk);
    done += chunk;
  }
  images.expect_end();
  Bytes raw(n);  // at most as many as there were images
  label_file.read(raw.data(), n);
  label_file.expect_end();
  Dataset set = from_pixels({pixels, pixels->data(), int(height), int(width)},
                            {raw.begin(), raw.end()}, 10, label_path);
  if (spec.kind == "fashion_mnist")
    set.class_names = {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                       "Sandal",      "Shirt",   "Sneaker",  "Bag",   "Ankle boot"};
  else
    set.class_names = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};
  return set;
}

}  // namespace pupil::data
