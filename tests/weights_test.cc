// Readers and writers of checkpoints and arrays: what must load, what must be refused, and that
// nothing is ever half-written.
#include "data/weights.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/file.h"
#include "data/sha256.h"
#include "tensor/random.h"
#include "tests/support.h"

namespace pupil::data {
namespace {

namespace fs = std::filesystem;

// A folder of this test's own, removed at its end.
struct Folder {
  fs::path path;
  Folder() {
    std::string name = (fs::temp_directory_path() / "pupil_weights_XXXXXX").string();
    PUPIL_CHECK(mkdtemp(name.data()), "no temporary folder");
    path = name;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void overwrite(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
}

template <class F>
std::string refusal(F&& f) {
  try {
    f();
  } catch (const InputError& e) {
    return e.what();
  }
  return "";
}

TEST(Sha256, KnownDigests) {
  Sha256 empty, abc, million;
  EXPECT_EQ(empty.hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  abc.add("abc", 3);
  EXPECT_EQ(abc.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  for (int i = 0; i < 1000; i++) million.add(std::string(1000, 'a').data(), 1000);
  EXPECT_EQ(million.hex(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Safetensors, RoundTrip) {
  Folder folder;
  std::string path = folder / "a.safetensors";
  std::vector<double> v{1.5, -2, 3.25, 0, 1e-30, -1e30};
  std::vector<int64_t> n{1, -2, 1 << 20};
  Tensor x = from(std::span<const double>(v), {2, 3});
  std::vector<std::pair<std::string, Tensor>> all{
      {"u8 \"quoted\" \xe6\x9d\xb1", full({3}, 200, DType::u8)},
      {"f64", x},
      {"f32.t", alias(x.to(DType::f32), {3, 2}, {1, 3})},
      {"bf16", x.to(DType::bf16)},
      {"i64", from(std::span<const int64_t>(n), {3})},
      {"i32", full({}, -7, DType::i32)},
      {"empty", zeros({0, 4})}};
  save_safetensors(path, all, {{"note", "a \"b\"\n"}, {"epoch", "3"}});
  auto w = open_weights(path);
  EXPECT_EQ(w->path(), path);
  EXPECT_EQ(w->metadata(),
            (std::map<std::string, std::string>{{"note", "a \"b\"\n"}, {"epoch", "3"}}));
  ASSERT_EQ(w->list().size(), all.size());
  for (size_t i = 0; i < all.size(); i++) {
    const TensorInfo& info = w->list()[i];
    EXPECT_EQ(info.name, all[i].first);
    EXPECT_EQ(info.shape, all[i].second.shape()) << info.name;
    EXPECT_EQ(w->read(info.name, DType::f64).values(), all[i].second.values()) << info.name;
    EXPECT_EQ(
        reinterpret_cast<uintptr_t>(w->bytes(info.name).data()) % size_of(all[i].second.dtype()),
        0u);
  }
  EXPECT_EQ(w->read("i64", DType::i64).values(), (std::vector<double>{1, -2, 1 << 20}));
  EXPECT_EQ(w->read("bf16", DType::bf16).dtype(), DType::bf16);
  EXPECT_NE(refusal([&] { w->read("f64", DType::i64); }).find("F64"), std::string::npos);
  EXPECT_NE(refusal([&] { w->read("no", DType::f32); }).find("'no'"), std::string::npos);

  // The hash sees names and values, not the order in the file.
  std::reverse(all.begin(), all.end());
  save_safetensors(folder / "b.safetensors", all);
  EXPECT_EQ(open_weights(folder / "b.safetensors")->hash(), w->hash());
  all[0].second = zeros({0, 5});
  save_safetensors(folder / "b.safetensors", all);
  EXPECT_NE(open_weights(folder / "b.safetensors")->hash(), w->hash());
}

TEST(Safetensors, SharedModulePrefixIsRemoved) {
  Folder folder;
  std::string path = folder / "a.safetensors";
  save_safetensors(path, {{"module.a", zeros({1})}, {"module.b", zeros({1})}});
  EXPECT_TRUE(open_weights(path)->has("a"));
  save_safetensors(path, {{"module.a", zeros({1})}, {"b", zeros({1})}});
  EXPECT_TRUE(open_weights(path)->has("module.a"));
}

TEST(FileWriter, OldFileUntilCommit) {
  Folder folder;
  std::string path = folder / "a.txt";
  write_file(path, "old");
  {
    FileWriter abandoned(path);
    abandoned.write("new");
    EXPECT_EQ(content(path), "old");
    EXPECT_NE(refusal([&] { FileWriter second(path); }).find("another process"), std::string::npos);
  }
  EXPECT_EQ(content(path), "old");
  EXPECT_FALSE(fs::exists(path + ".tmp"));
  overwrite(path + ".tmp", "left behind by a killed process");
  write_file(path, "new");
  EXPECT_EQ(content(path), "new");
  EXPECT_FALSE(fs::exists(path + ".tmp"));
}

TEST(Npy, RoundTrip) {
  Folder folder;
  std::vector<double> v{1, 2, 3, 4, 5, 6};
  Tensor x = from(std::span<const double>(v), {2, 3});
  for (DType dtype : {DType::f64, DType::f32, DType::i64, DType::u8})
    for (Shape shape : {Shape{6}, Shape{2, 3}, Shape{1, 6, 1}}) {
      Tensor t = alias(x.to(dtype), shape, row_major_strides(shape));
      save_npy(folder / "a.npy", t);
      Tensor back = read_npy(folder / "a.npy");
      EXPECT_EQ(back.dtype(), dtype);
      EXPECT_EQ(back.shape(), shape);
      EXPECT_EQ(back.values(), v);
    }
  save_npy(folder / "a.npy", full({}, 3));
  EXPECT_EQ(read_npy(folder / "a.npy").rank(), 0);
}

}  // namespace
}  // namespace pupil::data
