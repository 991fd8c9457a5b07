#include "data/data.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "data/sha256.h"
#include "data/sources.h"
#include "data_files.h"
#include "fuzz.h"

namespace pupil::data {
namespace {

namespace fs = std::filesystem;
using namespace std::string_literals;
using namespace test;

std::string real(const std::string& below) { return shared_folder() + "/data/" + below; }

std::vector<int64_t> count_classes(const Dataset& set) {
  std::vector<int64_t> counts(size_t(set.classes));
  for (int64_t label : set.labels) counts[size_t(label)]++;
  return counts;
}

Bytes pixels_of(const Dataset& set, int64_t i) {
  Image image;
  set.image(i, image);
  return image.pixels;
}

// Writes a folder of `per_class` 9 x 11 PNG images of each class.
void write_classes(const std::string& folder, const std::vector<std::string>& names,
                   int per_class) {
  uint64_t seed = 0;
  for (const std::string& name : names) {
    fs::create_directories(folder + "/" + name);
    for (int i = 0; i < per_class; i++)
      write_bytes(concat(folder, "/", name, "/", i, ".png"), png(noise_image(9, 11, 3, seed++)));
  }
}

TEST(Sha256, PublishedDigests) {  // FIPS 180-4 examples
  auto digest = [](const std::string& text, size_t piece) {
    Sha256 sha;
    for (size_t i = 0; i < text.size(); i += piece)
      sha.add(text.data() + i, std::min(piece, text.size() - i));
    return sha.hex();
  };
  EXPECT_EQ(digest("", 1), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(digest("abc", 3), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 5),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(digest(std::string(1000000, 'a'), 997),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Spec, TakesAPathApart) {
  Spec spec = parse_spec("cifar10:some/dir:train[1000]");
  EXPECT_EQ(spec.kind, "cifar10");
  EXPECT_EQ(spec.path, "some/dir");
  EXPECT_EQ(spec.split, "train");
  EXPECT_EQ(spec.count, 1000);
  spec = parse_spec("npy:a.npy+b.npy:[20]");
  EXPECT_EQ(spec.path, "a.npy+b.npy");
  EXPECT_EQ(spec.split, "");
  EXPECT_EQ(spec.count, 20);
  spec = parse_spec("folder:x:test");
  EXPECT_EQ(spec.split, "test");
  EXPECT_EQ(spec.count, -1);
  for (const char* bad : {"cifar10", "cifar10:", "cifar10:d:trian", "cifar10:d:train[0]",
                          "cifar10:d:train[-1]", "cifar10:d:train[12", "cifar10:d:train[]",
                          "cifar10:d:train[99999999999999999999]", "cifar10::train"})
    EXPECT_THROW(parse_spec(bad), InputError) << bad;
  expect_refused([] { open_dataset("cifar11:d:train"); }, {"cifar11", "fashion_mnist"});
}

TEST(Datasets, RealFilesHaveTheDocumentedCounts) {
  PUPIL_NEEDS_SHARED();
  struct Case {
    const char* spec;
    int64_t samples, classes, per_class;
    int side, channels;
  };
  for (const Case& c : {Case{"cifar10:cifar10:train", 15000, 10, 1500, 32, 3},
                        Case{"cifar10:cifar10:test", 10000, 10, 1000, 32, 3},
                        Case{"cifar100:cifar100:train", 6000, 100, 60, 32, 3},
                        Case{"cifar100:cifar100:test", 2000, 100, 20, 32, 3},
                        Case{"mnist:mnist:train", 6000, 10, 600, 28, 1},
                        Case{"mnist:mnist:test", 2000, 10, 200, 28, 1}}) {
    SCOPED_TRACE(c.spec);
    std::string spec = c.spec;
    spec.insert(spec.find(':') + 1, real(""));
    Dataset set = open_dataset(spec);
    EXPECT_EQ(set.size(), c.samples);
    EXPECT_EQ(set.whole, c.samples);
    EXPECT_EQ(set.classes, c.classes);
    EXPECT_EQ(set.class_names.size(), size_t(c.classes));
    EXPECT_EQ(set.hash.size(), 64u);
    EXPECT_EQ(count_classes(set), std::vector<int64_t>(size_t(c.classes), c.per_class));
    Image image;
    set.image(c.samples - 1, image);
    EXPECT_EQ(image.height, c.side);
    EXPECT_EQ(image.width, c.side);
    EXPECT_EQ(image.channels, c.channels);
    EXPECT_EQ(image.pixels.size(), size_t(c.side * c.side * c.channels));
  }
}

// The stored logits were made from these records in this order: a wrong label offset, plane order
// or file order would show here. ResNet-56 is nearly always right on its training files.
TEST(Datasets, RealLabelsAreThoseOfTheStoredLogits) {
  PUPIL_NEEDS_SHARED();
  Dataset set = open_dataset("cifar10:" + real("cifar10") + ":train");
  int64_t right = 0, at = 0;
  for (int part = 1; part <= 3; part++) {
    Tensor logits =
        read_npy(concat(real("reference/cifar10/data_batch_"), part, "_logits_resnet56.npy"));
    for (int64_t i = 0; i < logits.dim(0); i++, at++) {
      const float* row = logits.data<float>() + i * 10;
      right += std::max_element(row, row + 10) - row == set.labels[size_t(at)];
    }
  }
  EXPECT_EQ(at, set.size());
  EXPECT_GE(right, 14990);
}

TEST(Datasets, DebianFashionMnist) {
  if (!fs::exists("/usr/share/datasets/fashion-mnist"))
    GTEST_SKIP() << "dataset-fashion-mnist is not installed";
  Dataset train = open_dataset("fashion_mnist:/usr/share/datasets/fashion-mnist:train");
  EXPECT_EQ(train.size(), 60000);
  EXPECT_EQ(count_classes(train), std::vector<int64_t>(10, 6000));
  EXPECT_EQ(train.class_names[9], "Ankle boot");
  EXPECT_EQ(train.labels[0], 9);
  EXPECT_EQ(train.labels[1], 0);
  double sum = 0;  // the published mean of the training pixels is 0.2860
  for (int64_t i = 0; i < train.size(); i++)
    for (uint8_t p : pixels_of(train, i)) sum += p;
  EXPECT_NEAR(sum / 60000 / 784 / 255, 0.2860, 0.00005);
}

TEST(Datasets, PackedAndPlainIdxAreTheSame) {
  TemporaryFolder plain, packed;
  write_mnist(plain.path(), 40);
  for (const auto& entry : fs::directory_iterator(plain.path()))
    write_bytes(packed / (entry.path().filename().string() + ".gz"),
                gzip(read_bytes(entry.path().string())));
  for (const char* split : {":train", ":test", ""}) {
    Dataset a = open_dataset("mnist:" + plain.path() + split);
    Dataset b = open_dataset("mnist:" + packed.path() + split);
    EXPECT_EQ(a.hash, b.hash);
    EXPECT_EQ(a.labels, b.labels);
    EXPECT_EQ(pixels_of(a, 3), pixels_of(b, 3));
  }
  EXPECT_NE(open_dataset("mnist:" + plain.path() + ":train").hash,
            open_dataset("mnist:" + plain.path() + ":test").hash);
}

TEST(Datasets, BadIdxFilesAreRefused) {
  TemporaryFolder folder;
  std::string spec = "mnist:" + folder.path() + ":train";
  std::string images = folder / "train-images-idx3-ubyte",
              labels = folder / "train-labels-idx1-ubyte";
  auto open = [&] { open_dataset(spec); };
  expect_refused(open, {folder.path(), "train-images-idx3-ubyte", "put the four"});
  expect_refused([] { open_dataset("fashion_mnist:no/such/place:train"); },
                 {"no/such/place", "apt install dataset-fashion-mnist"});
  write_bytes(images, idx_images(20, 8));
  expect_refused(open, {labels, "missing"});
  write_bytes(labels, idx_labels(20));
  EXPECT_EQ(open_dataset(spec).size(), 20);
  expect_refused([&] { open_dataset("mnist:" + folder.path() + ":val"); }, {"train and test"});

  write_bytes(labels, idx_labels(19));
  expect_refused(open, {images, "20 images", "19 labels"});
  Bytes wrong = idx_labels(20);
  wrong[8 + 7] = 10;
  write_bytes(labels, wrong);
  expect_refused(open, {labels, "label 10 of sample 7", "0 ... 9"});
  write_bytes(labels, idx_images(20, 8));
  expect_refused(open, {labels, "2049"});
  write_bytes(labels, idx_labels(20));

  Bytes good = idx_images(20, 8), cut(good.begin(), good.end() - 5), longer = good;
  longer.push_back(0);
  write_bytes(images, cut);
  expect_refused(open, {images, "5 bytes too early"});
  write_bytes(images, longer);
  expect_refused(open, {images, "longer than its header says"});
  write_bytes(images, {});
  expect_refused(open, {images, "too early"});
  Bytes huge = good;
  std::fill_n(huge.begin() + 4, 4, 0xff);  // 4 billion images
  write_bytes(images, huge);
  Bytes huge_labels = idx_labels(20);
  std::fill_n(huge_labels.begin() + 4, 4, 0xff);
  write_bytes(labels, huge_labels);
  expect_refused(open, {images, "too early"});
  write_bytes(labels, idx_labels(20));

  fs::remove(images);
  Bytes packed = gzip(good);
  write_bytes(images + ".gz", packed);
  EXPECT_EQ(open_dataset(spec).size(), 20);  // one packed, the other not
  write_bytes(images + ".gz", {packed.begin(), packed.end() - 9});
  expect_refused(open, {images + ".gz"});
  Bytes damaged = packed;
  damaged[damaged.size() - 6] ^= 1;  // in the checksum
  write_bytes(images + ".gz", damaged);
  expect_refused(open, {images + ".gz"});
}

TEST(Datasets, CifarRecords) {
  TemporaryFolder folder;
  fs::create_directories(folder / "ten/cifar-10-batches-bin");
  for (int k = 1; k <= 5; k++)
    write_bytes(concat(folder / "ten/cifar-10-batches-bin/data_batch_", k, ".bin"),
                cifar_records(20, 10, uint64_t(k)));
  Dataset set = open_dataset("cifar10:" + (folder / "ten") + ":train");
  EXPECT_EQ(set.size(), 100);
  EXPECT_EQ(set.labels[13], 3);
  Bytes pixels = pixels_of(set, 25);  // record 5 of the second file; planes become channels
  for (int64_t place : {0, 1, 31, 32, 1023})
    for (int64_t c = 0; c < 3; c++)
      EXPECT_EQ(pixels[size_t(place * 3 + c)], noise(2, 5 * 3072 + c * 1024 + place));

  fs::create_directories(folder / "hundred");
  Bytes records = cifar_records(100, 100);
  write_bytes(folder / "hundred/train.bin", records);
  EXPECT_EQ(open_dataset("cifar100:" + (folder / "hundred")).labels[42], 42);
  expect_refused([&] { open_dataset("cifar100:" + (folder / "hundred") + ":test"); },
                 {"hundred", "test[.bin]"});
  records[3074 * 5 + 1] = 100;
  write_bytes(folder / "hundred/train.bin", records);
  expect_refused([&] { open_dataset("cifar100:" + (folder / "hundred")); },
                 {"train.bin", "label 100 of sample 5"});
  records.pop_back();
  write_bytes(folder / "hundred/train.bin", records);
  expect_refused([&] { open_dataset("cifar100:" + (folder / "hundred")); }, {"train.bin", "3074"});
  write_bytes(folder / "hundred/train.bin", {});
  expect_refused([&] { open_dataset("cifar100:" + (folder / "hundred")); }, {"0 bytes"});
  expect_refused([&] { open_dataset("cifar10:" + (folder / "none")); }, {"no folder", "unpack"});
  expect_refused([&] { open_dataset("cifar10:" + (folder / "hundred")); }, {"data_batch_1[.bin]"});
}

// What Python 2 with NumPy wrote into the published archives: a dict of an array and a list.
// `module` is where the array's constructor is looked for.
Bytes cifar_pickle(int n, const std::string& module = "numpy.core.multiarray\n_reconstruct") {
  std::string text =
      "\x80\x02}(U\x04"
      "datac" +
      module + "\ncnumpy\nndarray\nK";
  text += std::string(
      "\0\x85U\x01"
      "b\x87R(K\x01K",
      11);
  text += char(n);
  text += std::string(
      "M\0\x0c\x86"
      "cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ",
      37);
  text += "\xff\xff\xff\xffJ\xff\xff\xff\xffK" + std::string(1, '\0') + "tb\x89T";
  int32_t length = n * 3072;
  text.append(reinterpret_cast<const char*>(&length), 4);
  for (int64_t i = 0; i < length; i++) text += char(noise(5, i));
  text += "tbU\x06labels](";
  for (int i = 0; i < n; i++) text += {'K', char(i % 10)};
  text += "eu.";
  return {text.begin(), text.end()};
}

// The same batch read and written again by Python 3 at protocol 2: text is unicode, bytes are a
// call of _codecs.encode.
Bytes cifar_pickle_of_python3(int n, const std::string& codec = "latin1") {
  std::string text = "\x80\x02}(";
  auto put32 = [&](size_t value) {
    int32_t number = int32_t(value);
    text.append(reinterpret_cast<const char*>(&number), 4);
  };
  auto put_text = [&](const std::string& utf8) {
    text += 'X';
    put32(utf8.size());
    text += utf8;
  };
  auto put_bytes = [&](const std::string& bytes) {
    std::string utf8;
    for (char c : bytes)
      if (uint8_t(c) < 0x80)
        utf8 += c;
      else
        utf8 += {char(0xc0 | uint8_t(c) >> 6), char(0x80 | (uint8_t(c) & 0x3f))};
    text += "c_codecs\nencode\n";
    put_text(utf8);
    put_text(codec);
    text += "\x86R";
  };
  put_bytes("data");
  text += "cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK";
  text += std::string("\0\x85", 2);
  put_bytes("b");
  text += "\x87R(K\x01K";
  text += char(n);
  text += std::string("M\0\x0c\x86", 4) + "cnumpy\ndtype\n";
  put_text("u1");
  text += "\x89\x88\x87R(K\x03";
  put_text("|");
  text += "NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK" + std::string(1, '\0') + "tb\x89";
  std::string pixels;
  for (int64_t i = 0; i < n * 3072; i++) pixels += char(noise(5, i));
  put_bytes(pixels);
  text += "tb";
  put_bytes("labels");
  text += "](";
  for (int i = 0; i < n; i++) text += {'K', char(i % 10)};
  text += "eu.";
  return {text.begin(), text.end()};
}

TEST(Datasets, CifarPythonBatches) {
  TemporaryFolder folder;
  std::string file = folder / "test_batch", spec = "cifar10:" + folder.path() + ":test";
  write_bytes(file, cifar_pickle(20));
  Dataset set = open_dataset(spec);
  EXPECT_EQ(set.size(), 20);
  EXPECT_EQ(set.labels[13], 3);
  EXPECT_EQ(pixels_of(set, 7)[3 * 33 + 2], noise(5, 7 * 3072 + 2 * 1024 + 33));
  // The binary records of the same samples are the same data.
  Bytes records;
  for (int i = 0; i < 20; i++) {
    records.push_back(uint8_t(i % 10));
    for (int64_t j = 0; j < 3072; j++) records.push_back(noise(5, i * 3072 + j));
  }
  fs::create_directories(folder / "bin");
  write_bytes(folder / "bin/test_batch.bin", records);
  EXPECT_EQ(open_dataset("cifar10:" + (folder / "bin") + ":test").hash, set.hash);

  write_bytes(file, cifar_pickle_of_python3(20));
  EXPECT_EQ(open_dataset(spec).hash, set.hash);
  write_bytes(file, cifar_pickle_of_python3(20, "rot13"));
  expect_refused([&] { open_dataset(spec); }, {file, "no bytes"});

  write_bytes(file, cifar_pickle(20, "os\nsystem"));
  expect_refused([&] { open_dataset(spec); }, {file, "os.system", "nothing was run", "archive"});
  write_bytes(file, cifar_pickle(20, "numpy\ndtype"));  // an allowed name in the wrong place
  expect_refused([&] { open_dataset(spec); }, {file});
  Bytes good = cifar_pickle(3), cut(good.begin(), good.end() - 2), wrong = good;
  write_bytes(file, cut);
  expect_refused([&] { open_dataset(spec); }, {file});
  wrong[wrong.size() - 4] = 11;  // the last label
  write_bytes(file, wrong);
  expect_refused([&] { open_dataset(spec); }, {file, "label 11 of sample 2"});
}

TEST(Folder, ReadsClassesInTheOrderOfTheirNames) {
  TemporaryFolder folder;
  write_classes(folder / "train", {"zebra", "ant", "moose"}, 3);
  write_classes(folder / "val", {"zebra", "moose"}, 2);
  Dataset train = open_dataset("folder:" + folder.path() + ":train");
  EXPECT_EQ(train.class_names, (std::vector<std::string>{"ant", "moose", "zebra"}));
  EXPECT_EQ(train.labels, (std::vector<int64_t>{0, 0, 0, 1, 1, 1, 2, 2, 2}));
  EXPECT_EQ(pixels_of(train, 6), noise_image(9, 11, 3, 0).pixels);  // zebra/0.png was written first
  EXPECT_EQ(open_dataset("folder:" + folder.path()).hash, train.hash);
  Dataset test = open_dataset("folder:" + folder.path() + ":test");  // val stands in for test
  EXPECT_EQ(test.labels, (std::vector<int64_t>{1, 1, 2, 2}));        // numbered as in train
  EXPECT_EQ(test.class_names, train.class_names);
  Dataset direct = open_dataset("folder:" + (folder / "train") + ":train");
  EXPECT_EQ(direct.hash, train.hash);
  expect_refused([&] { open_dataset("folder:" + (folder / "train") + ":test"); }, {"test"});

  fs::create_directories(folder / "val/yak");
  write_bytes(folder / "val/yak/0.png", png(noise_image(4, 4, 3, 1)));
  expect_refused([&] { open_dataset("folder:" + folder.path() + ":val"); }, {"yak", "train"});
}

TEST(Folder, UnreadableFilesAreCountedOrFatal) {
  TemporaryFolder folder;
  write_classes(folder.path(), {"a", "b"}, 3);
  Bytes whole = read_bytes(folder / "a/1.png");
  write_bytes(folder / "a/1.png", {whole.begin(), whole.end() - 20});
  write_bytes(folder / "b/notes.txt", {'h', 'i'});
  write_bytes(folder / "b/.hidden", {'h', 'i'});
  testing::internal::CaptureStderr();
  Dataset set = open_dataset("folder:" + folder.path());
  open_dataset("folder:" + folder.path());  // the same, said once
  std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 3) << said;
  EXPECT_EQ(set.size(), 5);
  EXPECT_EQ(set.unreadable, 2);
  EXPECT_NE(said.find("a/1.png"), std::string::npos) << said;
  EXPECT_NE(said.find("2 unreadable files skipped, 5 images read"), std::string::npos) << said;
  expect_refused([&] { open_dataset("folder:" + folder.path(), true); }, {"a/1.png", "--strict"});
}

TEST(Folder, EmptyOnesAreRefused) {
  TemporaryFolder folder;
  auto open = [&] { open_dataset("folder:" + folder.path()); };
  expect_refused(open, {folder.path(), "no sub-folders"});
  fs::create_directories(folder / "a");
  expect_refused(open, {folder.path(), "no PNG or JPEG"});
  expect_refused([&] { open_dataset("folder:" + (folder / "none")); }, {"no folder"});
}

TEST(Unlabeled, HoldsATenthBackByTheBytesOfTheFiles) {
  TemporaryFolder folder;
  fs::create_directories(folder / "in/side");
  for (int i = 0; i < 30; i++)
    write_bytes(folder / concat(i % 2 ? "in/side/" : "", i, i % 3 ? ".png" : ".PNG"),
                png(noise_image(4, 5, 3, uint64_t(i))));
  write_bytes(folder / "notes.txt", {'h', 'i'});
  std::string spec = "unlabeled:" + folder.path();
  testing::internal::CaptureStderr();
  Dataset all = open_dataset(spec);
  std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("1 files that are not called"), std::string::npos) << said;
  EXPECT_EQ(all.size(), 30);
  EXPECT_EQ(all.classes, 0);
  Dataset train = open_dataset(spec + ":train"), held_out = open_dataset(spec + ":val");
  EXPECT_EQ(train.size(), 27);
  EXPECT_EQ(held_out.size(), 3);
  EXPECT_EQ(train.hash, all.hash);
  std::vector<int64_t> rows = train.rows;
  rows.insert(rows.end(), held_out.rows.begin(), held_out.rows.end());
  std::sort(rows.begin(), rows.end());
  EXPECT_EQ(rows, all.rows);
  for (int64_t i = 0; i < 3; i++) {
    int64_t row = held_out.rows[size_t(i)];
    EXPECT_EQ(held_out.paths[size_t(i)], all.paths[size_t(row)]);
    EXPECT_EQ(pixels_of(held_out, i), pixels_of(all, row));
  }

  // Copies of a held-out photo under other names are held out, too.
  for (int k = 0; k < 4; k++) fs::copy_file(held_out.paths[2], folder / concat("copy", k, ".png"));
  held_out = open_dataset(spec + ":val");
  int copies = 0;
  for (const std::string& path : held_out.paths) copies += path.find("copy") != path.npos;
  EXPECT_EQ(copies, 4);
  EXPECT_NE(held_out.hash, all.hash);

  write_bytes(folder / "0.PNG", {0xff, 0xd8, 0xff, 0xe0});  // no longer a whole image
  testing::internal::CaptureStderr();
  EXPECT_EQ(open_dataset(spec).size(), 33);
  said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("0.PNG"), std::string::npos) << said;
  expect_refused([&] { open_dataset(spec + ":test"); }, {"train and val"});
  expect_refused([&] { open_dataset(spec + "/in/none"); }, {"no folder"});
  fs::create_directories(folder / "empty");
  expect_refused([&] { open_dataset(spec + "/empty"); }, {"no PNG or JPEG"});
}

TEST(Arrays, ImagesAndVectors) {
  TemporaryFolder folder;
  Tensor images = zeros({6, 4, 5, 3}, DType::u8);
  for (int64_t i = 0; i < images.numel(); i++) images.data<uint8_t>()[i] = noise(9, i);
  std::vector<int64_t> labels{0, 1, 2, 0, 1, 2};
  Tensor label_tensor = from(std::span<const int64_t>(labels), {6});
  save_npy(folder / "x.npy", images);
  save_npy(folder / "y.npy", label_tensor);
  Dataset set = open_dataset("npy:" + (folder / "x.npy") + "+" + (folder / "y.npy"));
  EXPECT_EQ(set.labels, labels);
  EXPECT_EQ(set.classes, 3);
  Image image;
  set.image(2, image);
  EXPECT_EQ(image.height, 4);
  EXPECT_EQ(image.width, 5);
  EXPECT_EQ(image.pixels, Bytes(images.data<uint8_t>() + 120, images.data<uint8_t>() + 180));
  save_safetensors(folder / "set.safetensors", {{"images", images}, {"labels", label_tensor}});
  EXPECT_EQ(open_dataset("safetensors:" + (folder / "set.safetensors")).hash, set.hash);
  fs::copy(folder / "x.npy", folder / "train_images.npy");
  fs::copy(folder / "y.npy", folder / "train_labels.npy");
  EXPECT_EQ(open_dataset("npy:" + folder.path() + ":train[3]").size(), 3);
  expect_refused([&] { open_dataset("npy:" + folder.path() + ":test"); }, {"test_images.npy"});
  fs::copy(folder / "x.npy", folder / "test_images.npy");
  save_npy(folder / "test_labels.npy", zeros({6}, DType::i64));
  EXPECT_EQ(open_dataset("npy:" + folder.path() + ":test").classes, 3);  // those of train

  Tensor vectors = zeros({6, 7});
  for (int64_t i = 0; i < 42; i++) vectors.data<float>()[i] = float(i);
  save_npy(folder / "v.npy", vectors);
  Dataset floats = open_dataset("npy:" + (folder / "v.npy") + "+" + (folder / "y.npy") + ":[4]");
  EXPECT_EQ(floats.values.shape(), (Shape{4, 7}));
  for (int64_t i = 0; i < 4; i++)
    EXPECT_EQ(floats.values.data<float>()[i * 7 + 2], float(floats.rows[size_t(i)] * 7 + 2));
}

TEST(Arrays, RowsOfAFile) {
  TemporaryFolder folder;
  auto save_integers = [&](const char* name, std::vector<int64_t> values) {
    save_npy(folder / name, from(std::span<const int64_t>(values), {int64_t(values.size())}));
  };
  Tensor vectors = zeros({5, 2});
  for (int64_t i = 0; i < 10; i++) vectors.data<float>()[i] = float(i);
  save_npy(folder / "v.npy", vectors);
  save_integers("y.npy", {0, 1, 2, 1, 0});
  save_integers("r.npy", {4, 1, 4});
  auto part = [&](const char* name) { return (folder / name) + "[" + (folder / "r.npy") + "]"; };
  auto open = [&] { return open_dataset("npy:" + part("v.npy") + "+" + part("y.npy")); };
  Dataset set = open();
  EXPECT_EQ(set.labels, (std::vector<int64_t>{0, 1, 0}));
  EXPECT_EQ(set.values.values(), (std::vector<double>{8, 9, 2, 3, 8, 9}));
  // Images stored apart, labels of the whole.
  save_npy(folder / "x.npy", zeros({3, 2}));
  EXPECT_EQ(open_dataset("npy:" + (folder / "x.npy") + "+" + part("y.npy")).labels, set.labels);
  save_integers("r.npy", {0, 5});
  expect_refused([&] { open(); }, {"r.npy: value 1 is 5", "v.npy has 5 rows"});
  save_integers("r.npy", {-1});
  expect_refused([&] { open(); }, {"value 0 is -1"});
  save_integers("r.npy", {});
  expect_refused([&] { open(); }, {"r.npy", "integers"});
  save_npy(folder / "r.npy", zeros({2}));
  expect_refused([&] { open(); }, {"r.npy", "f32", "integers"});
}

TEST(Arrays, BadOnesAreRefused) {
  TemporaryFolder folder;
  std::string x = folder / "x.npy", y = folder / "y.npy", spec = "npy:" + x + "+" + y;
  auto open = [&] { open_dataset(spec); };
  std::vector<int64_t> labels{0, 1, 2, 0};
  save_npy(y, from(std::span<const int64_t>(labels), {4}));
  expect_refused(open, {x});
  Tensor vectors = zeros({4, 3});
  vectors.data<float>()[7] = std::numeric_limits<float>::quiet_NaN();
  save_npy(x, vectors);
  expect_refused(open, {x, "value 1 of sample 2 is nan"});
  vectors.data<float>()[7] = std::numeric_limits<float>::infinity();
  save_npy(x, vectors);
  expect_refused(open, {"value 1 of sample 2 is inf"});
  vectors.data<float>()[7] = 0;
  save_npy(x, vectors);
  EXPECT_EQ(open_dataset(spec).classes, 3);
  save_npy(y, from(std::span<const int64_t>(labels).first(3), {3}));
  expect_refused(open, {y, "(3)", "(4)"});
  labels[3] = -1;
  save_npy(y, from(std::span<const int64_t>(labels), {4}));
  expect_refused(open, {y, "label -1 of sample 3"});
  for (int64_t wrong : {int64_t(1) << 40, std::numeric_limits<int64_t>::max(),
                        std::numeric_limits<int64_t>::min()}) {
    labels[3] = wrong;
    save_npy(y, from(std::span<const int64_t>(labels), {4}));
    expect_refused(open, {y, concat("label ", wrong, " of sample 3")});
    save_safetensors(
        folder / "l.safetensors",
        {{"x", zeros({4, 2})}, {"labels", from(std::span<const int64_t>(labels), {4})}});
    expect_refused([&] { open_dataset("safetensors:" + (folder / "l.safetensors")); },
                   {"l.safetensors", concat("label ", wrong, " of sample 3")});
  }
  save_npy(y, zeros({4}));
  expect_refused(open, {y, "f32", "integers"});
  labels[3] = 0;
  save_npy(y, from(std::span<const int64_t>(labels), {4}));
  save_npy(x, zeros({4}));
  expect_refused(open, {x, "(n, features)"});
  save_npy(x, zeros({0, 5}));
  expect_refused(open, {x});
  save_npy(x, zeros({4, 2}, DType::i64));
  expect_refused(open, {x, "i64", "uint8"});
  expect_refused([&] { open_dataset("npy:" + x); }, {"labels", "IMAGES.npy+LABELS.npy"});
  expect_refused([&] { open_dataset(spec + ":train"); }, {"no splits"});
  save_safetensors(folder / "s.safetensors", {{"x", zeros({4, 2})}});
  expect_refused([&] { open_dataset("safetensors:" + (folder / "s.safetensors")); }, {"labels"});
}

Dataset labelled(std::vector<int64_t> per_class) {
  Dataset set;
  set.spec = "made up";
  set.classes = int64_t(per_class.size());
  for (size_t c = 0; c < per_class.size(); c++)
    set.labels.insert(set.labels.end(), size_t(per_class[c]), int64_t(c));
  number_rows(set);
  return set;
}

TEST(Subsets, KeepTheSharesOfTheClasses) {
  Dataset whole = labelled({100, 50, 30, 20, 1});
  for (int64_t n : {1, 10, 37, 100, 200, 201}) {
    Dataset part = stratified_subset(whole, n, 7);
    ASSERT_EQ(part.size(), n);
    EXPECT_EQ(part.whole, 201);
    std::vector<int64_t> counts = count_classes(part);
    for (size_t c = 0; c < 5; c++) {
      double share = double(count_classes(whole)[c]) * double(n) / 201;
      EXPECT_LE(std::fabs(double(counts[c]) - share), 1.0) << "class " << c << " of " << n;
    }
    EXPECT_TRUE(std::is_sorted(part.rows.begin(), part.rows.end()));
    EXPECT_EQ(std::set<int64_t>(part.rows.begin(), part.rows.end()).size(), size_t(n));
    for (int64_t i = 0; i < n; i++)
      EXPECT_EQ(part.labels[size_t(i)], whole.labels[size_t(part.rows[size_t(i)])]);
  }
  EXPECT_EQ(stratified_subset(whole, 50, 7).rows, stratified_subset(whole, 50, 7).rows);
  EXPECT_NE(stratified_subset(whole, 50, 7).rows, stratified_subset(whole, 50, 8).rows);
  // "the first N": a smaller subset lies within a larger one of the same seed
  Dataset small = stratified_subset(whole, 50, 7), large = stratified_subset(whole, 90, 7);
  EXPECT_TRUE(
      std::includes(large.rows.begin(), large.rows.end(), small.rows.begin(), small.rows.end()));
  // a subset of a subset still names rows of the whole
  Dataset nested = stratified_subset(small, 10, 1);
  EXPECT_TRUE(
      std::includes(small.rows.begin(), small.rows.end(), nested.rows.begin(), nested.rows.end()));
  expect_refused([&] { stratified_subset(whole, 202, 0); }, {"made up", "201", "202"});
  expect_refused([&] { stratified_subset(whole, 0, 0); }, {"201"});
}

TEST(Subsets, ValidationIsDisjointAndStratified) {
  Dataset whole = labelled({100, 60, 40});
  auto [rest, held_out] = split_validation(whole, 0.2, 3);
  EXPECT_EQ(count_classes(held_out), (std::vector<int64_t>{20, 12, 8}));
  EXPECT_EQ(count_classes(rest), (std::vector<int64_t>{80, 48, 32}));
  std::vector<int64_t> all = rest.rows;
  all.insert(all.end(), held_out.rows.begin(), held_out.rows.end());
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, whole.rows);
  for (double share : {0.0, 1.0, -0.1, 0.0001, std::nan("")})
    EXPECT_THROW(split_validation(whole, share, 3), InputError) << share;
}

std::string text(const Bytes& bytes) { return {bytes.begin(), bytes.end()}; }

// Where a damaged file is put, and how the data set that it belongs to is asked for.
struct Place {
  std::string kind, below, file, split;
};

// A damaged file takes these places by turns. Every image of the data set is decoded.
void fuzz_dataset(const TemporaryFolder& folder, const std::vector<std::string>& good,
                  const std::vector<Place>& places, const std::vector<std::string>& words) {
  for (const Place& place : places) fs::create_directories(folder / place.below);
  size_t round = 0;
  std::string damaged = folder / "damaged";
  auto parse = [&] {
    const Place& place = places[round++ % places.size()];
    std::string within = folder / place.below;
    fs::remove(within + "/" + place.file);  // some file systems wait where a file is replaced
    fs::rename(damaged, within + "/" + place.file);
    Dataset set = open_dataset(concat(place.kind, ":", within, place.split));
    Image image;
    for (int64_t i = 0; i < set.size(); i++) set.image(i, image);
  };
  fuzz(good, damaged, parse, {.mention = folder.path(), .words = words});
}

// Beside the file that is damaged lies a sound one: under the name that belongs to it, packed where
// the damaged one is not or the other way round, or nowhere.
TEST(Fuzz, Idx) {
  const std::vector<std::string> numbers = {"\0\0\x08\x03"s, "\0\0\x08\x01"s, "\0\0\0\0"s,
                                            "\0\0\0\3"s,     "\0\0\x10\0"s,   "\0\0\x10\1"s};
  for (bool images : {true, false}) {
    TemporaryFolder folder;
    const char* name = images ? "-images-idx3-ubyte" : "-labels-idx1-ubyte";
    const char* other = images ? "-labels-idx1-ubyte" : "-images-idx3-ubyte";
    std::vector<Place> places = {{"mnist", "plain", concat("train", name), ""},
                                 {"mnist", "other_packed", concat("train", name), ":train"},
                                 {"fashion_mnist", "packed", concat("train", name, ".gz"), ""},
                                 {"fashion_mnist", "test", concat("t10k", name), ":test"}};
    const char* others[] = {"train", "train", "train", "t10k"};
    for (size_t i = 0; i < places.size(); i++) {
      fs::create_directories(folder / places[i].below);
      write_bytes(concat(folder / places[i].below, "/", others[i], other, i == 1 ? ".gz" : ""),
                  images ? idx_labels(3) : idx_images(3, 2));
    }
    if (images) places.push_back({"mnist", "alone", concat("train", name), ""});
    Bytes three = images ? idx_images(3, 2) : idx_labels(3),
          four = images ? idx_images(4, 2) : idx_labels(4);
    fuzz_dataset(folder, {text(three), text(four), text(gzip(three))}, places, numbers);
  }
}

TEST(Fuzz, Cifar) {
  TemporaryFolder folder;
  fs::create_directories(folder / "all");
  for (int k = 1; k <= 4; k++)
    write_bytes(concat(folder / "all", "/data_batch_", k, ".bin"), cifar_records(1, 10));
  fuzz_dataset(folder, {text(cifar_records(1, 10)), text(cifar_records(1, 100))},
               {{"cifar100", "a", "train.bin", ""},
                {"cifar100", "a", "test.bin", ":test"},
                {"cifar10", "a", "test_batch.bin", ":test"},
                {"cifar10", "a", "data_batch_1.bin", ":train"},
                {"cifar10", "all", "data_batch_5.bin", ":train"}},
               {});
}

// What the pickles of CIFAR are made of, and some of what they are not.
const std::vector<std::string> kCifarWords = {"c_codecs\nencode\nX\1\0\0\0aX\6\0\0\0latin1\x86R"s,
                                              "X\7\0\0\0latin-1"s,
                                              "X\2\0\0\0\xc3\xa9"s,
                                              "X\1\0\0\0\xc3"s,
                                              "X\2\0\0\0\xc4\x80"s,
                                              "X\2\0\0\0\xc3\x28"s,
                                              "c_codecs\nencode\n"s,
                                              "cnumpy\ndtype\n"s,
                                              "cnumpy\nndarray\n"s,
                                              "cnumpy.core.multiarray\n_reconstruct\n"s,
                                              "cnumpy._core.multiarray\n_reconstruct\n"s,
                                              "cos\nsystem\n"s,
                                              "U\2u1"s,
                                              "U\2u2"s,
                                              "U\6labels"s,
                                              "U\4data"s,
                                              "K\0"s,
                                              "K\1"s,
                                              "M\0\x0c"s,
                                              "N"s,
                                              "\x88"s,
                                              "\x89"s,
                                              ")"s,
                                              "]"s,
                                              "}"s,
                                              "("s,
                                              "t"s,
                                              "\x85"s,
                                              "\x86"s,
                                              "\x87"s,
                                              "0"s,
                                              "2"s,
                                              "R"s,
                                              "b"s,
                                              "s"s,
                                              "u"s,
                                              "a"s,
                                              "e"s};

std::string replaced(std::string text, const std::string& old, const std::string& other) {
  size_t at = text.find(old);
  PUPIL_CHECK(at != text.npos, "no ", old);
  return text.replace(at, old.size(), other);
}

// A text as Python 3 writes bytes at protocol 2.
std::string encoded(const std::string& utf8, const std::string& codec = "latin1") {
  std::string call = "c_codecs\nencode\n";
  for (const std::string& s : {utf8, codec})
    call += "X"s + char(s.size() & 0xff) + char(s.size() >> 8) + "\0\0"s + s;
  return call + "\x86R";
}

TEST(Fuzz, CifarOfPickles) {
  TemporaryFolder folder;
  std::vector<std::string> good;
  for (std::string batch : {text(cifar_pickle(1)), text(cifar_pickle_of_python3(1)),
                            text(cifar_pickle(1, "numpy._core.multiarray\n_reconstruct"))}) {
    good.push_back(batch);
    size_t key = batch.rfind("labels");
    batch[key - (batch[key - 2] == 'U' ? 1 : 4)] = 11;
    good.push_back(batch.insert(key, "fine_"));
  }
  // Batches that are wrong in one place.
  std::string shape = "K\1M\0\x0c\x86"s, type = "cnumpy\ndtype\nU\2u1K\0K\1\x87R"s,
              array = "cnumpy.core.multiarray\n_reconstruct\n";
  for (const auto& [old, other] : std::vector<std::pair<std::string, std::string>>{
           {"tb\x89T"s, "tb\x88T"s},
           {shape, "K\1K\1M\0\x0c\x87"s},
           {shape, "K\1N\x86"s},
           {type, "cnumpy\ndtype\n)R"s},
           {array, array + ")R" + array},
           {array, array + "cnumpy\ndtype\n\x85R" + array},
           {"b\x87R(K\1"s + shape + type, "b\x87Rq\1(K\1"s + shape + "h\1"},
           {"b\x87R(K\1"s + shape + type + "(", "b\x87R(K\1"s + shape + "}("},
           {"](K\0eu."s, "](K\0K\1eu."s},
           {"](K\0eu."s, "](Neu."s},
           {"](K\0eu."s, "](K\143eu."s},
           {"](K\0eu."s, "Nu."s}})
    good.push_back(replaced(good[0], old, other));
  for (std::string data : {"K\1"s, "cnumpy\ndtype\nU\2u1\x85R"s, "cnumpy\ndtype\n"s})
    good.push_back("\x80\2}(U\4data" + data + "U\6labels](K\0eu."s);
  good.push_back(replaced(good[2], "X\6\0\0\0latin1"s, "X\7\0\0\0latin-1"s));
  good.push_back(replaced(good[2], "X\6\0\0\0latin1"s, "N"));
  std::string again = encoded(std::string(600, 'a')) + "0";  // the same text, bigger every time
  again.insert(again.find('X') + 605, "q\7");
  for (int i = 0; i < 7; i++) again += "c_codecs\nencode\nh\7X\6\0\0\0latin1\x86R"s + "0";
  good.push_back("\x80\2" + again + good[0].substr(2));
  fuzz_dataset(folder, good,
               {{"cifar10", "a", "test_batch", ":test"}, {"cifar100", "b", "train", ""}},
               kCifarWords);
}

// A damaged list of names is none; only a pickle that is none is refused.
TEST(Fuzz, CifarNames) {
  TemporaryFolder folder;
  std::string lines, pickled, python3;
  for (int i = 0; i < 10; i++) {
    std::string name = "c"s + char('0' + i);
    lines += name + (i % 2 ? "\n" : "\r\n\n");
    pickled += "U\2" + name;
    python3 += encoded(name);
  }
  std::vector<Place> places = {{"cifar10", "a", "batches.meta", ":test"},
                               {"cifar10", "b", "batches.meta.txt", ":test"},
                               {"cifar100", "c", "meta", ""},
                               {"cifar100", "d", "fine_label_names.txt", ""}};
  for (const char* below : {"a", "b"}) {
    fs::create_directories(folder / below);
    write_bytes(concat(folder / below, "/test_batch.bin"), cifar_records(1, 10));
  }
  for (const char* below : {"c", "d"}) {
    fs::create_directories(folder / below);
    write_bytes(concat(folder / below, "/train.bin"), cifar_records(1, 100));
  }
  fuzz_dataset(
      folder,
      {lines, "\x80\2}U\x0blabel_names](" + pickled + "es.",
       "\x80\2}" + encoded("label_names") + "](" + python3 + "es.", "\x80\2}U\x0blabel_namesNs.",
       "\x80\2}U\x10"
       "fine_label_names](" +
           pickled + "es."},
      places, kCifarWords);
}

// Decoded by itself: the check of a folder's structure hides damage from the decoder.
TEST(Fuzz, Images) {
  PUPIL_NEEDS_SHARED();
  TemporaryFolder folder;
  std::string files = shared_folder() + "/reference/image/files", path = folder / "a.png";
  std::vector<std::string> good = seeds({files}, ".jpg", 20000);
  for (std::string& one : seeds({files}, ".png", 20000)) good.push_back(one);
  for (int orientation : {1, 3, 8})
    for (bool little : {false, true})
      good.push_back(text(turned_png(noise_image(5, 4, 3, 1), orientation, little)));
  FuzzOptions options;
  options.words = {"\xff\xd8"s,
                   "\xff\xd9"s,
                   "\xff\xda\0\2"s,
                   "\xff\xc2\0\x11"s,
                   "\xff\xe1\0\x10"s,
                   "Exif\0\0"s,
                   "Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3"s,
                   "\xff\xff"s,
                   "IHDR",
                   "IEND"};
  options.repair = [](std::string& file) {  // the checksums of a PNG
    for (size_t at = 8; at + 12 <= file.size();) {
      auto byte = [&](size_t i) { return size_t(uint8_t(file[i])); };
      size_t size = byte(at) << 24 | byte(at + 1) << 16 | byte(at + 2) << 8 | byte(at + 3);
      if (size > file.size() - at - 12) return;
      const uint8_t* type = reinterpret_cast<const uint8_t*>(file.data()) + at + 4;
      Bytes sum;
      put_big32(sum, uint32_t(crc32(0, type, unsigned(size + 4))));
      std::copy(sum.begin(), sum.end(), file.begin() + std::ptrdiff_t(at + 8 + size));
      at += size + 12;
    }
  };
  fuzz(
      good, path, [&] { decode_image(read_bytes(path), path, true); }, options);
}

}  // namespace
}  // namespace pupil::data
