#include "onnx.h"

#include <filesystem>

#include "file.h"

namespace pupil::data::onnx {
namespace {

// A message of protobuf as it grows. The numbers of the fields are those of onnx.proto.
class Message {
 public:
  Message& number(int field, int64_t value) {
    tag(field, 0);
    varint(uint64_t(value));
    return *this;
  }
  Message& real(int field, float value) {
    tag(field, 5);
    char raw[sizeof value];
    memcpy(raw, &value, sizeof value);
    bytes_.append(raw, sizeof value);
    return *this;
  }
  Message& text(int field, std::string_view value) {
    begin(field, int64_t(value.size()));
    bytes_ += value;
    return *this;
  }
  Message& add(int field, const Message& part) { return text(field, part.bytes_); }
  // `size` bytes follow that are written elsewhere.
  Message& begin(int field, int64_t size) {
    tag(field, 2);
    varint(uint64_t(size));
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
  void tag(int field, int wire) { varint(uint64_t(field) << 3 | uint64_t(wire)); }
  void varint(uint64_t value) {
    for (; value >= 128; value >>= 7) bytes_ += char(value | 128);
    bytes_ += char(value);
  }
};

int64_t data_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return 1;
    case DType::u8:
      return 2;
    case DType::i32:
      return 6;
    case DType::i64:
      return 7;
    default:
      PUPIL_CHECK(false, "onnx: ", name_of(dtype), " is not written");
  }
}

Message pair(std::string_view key, std::string_view value) {
  return Message().text(1, key).text(2, value);
}

Message attribute(const Attribute& a) {
  Message m;
  m.text(1, a.name);
  if (auto* real = std::get_if<float>(&a.value)) {
    m.real(2, *real).number(20, 1);
  } else if (auto* number = std::get_if<int64_t>(&a.value)) {
    m.number(3, *number).number(20, 2);
  } else {
    for (int64_t value : std::get<std::vector<int64_t>>(a.value)) m.number(8, value);
    m.number(20, 7);
  }
  return m;
}

Message node(const Node& n) {
  Message m;
  for (const std::string& input : n.inputs) m.text(1, input);
  for (const std::string& output : n.outputs) m.text(2, output);
  m.text(3, n.outputs.at(0)).text(4, n.type);
  for (const Attribute& a : n.attributes) m.add(5, attribute(a));
  return m;
}

Message port(const Port& p) {
  Message shape;
  for (int64_t size : p.shape)
    shape.add(1, size < 0 ? Message().text(2, "batch") : Message().number(1, size));
  Message tensor, type;
  tensor.number(1, data_type(p.dtype)).add(2, shape);
  type.add(1, tensor);
  return Message().text(1, p.name).add(2, type);
}

// Without the values.
Message tensor(const Initializer& t) {
  PUPIL_CHECK(t.value.is_contiguous(), "onnx: ", t.name, " is not contiguous");
  Message m;
  for (int d = 0; d < t.value.rank(); d++) m.number(1, t.value.dim(d));
  return m.number(2, data_type(t.value.dtype())).text(8, t.name);
}

}  // namespace

void save(const std::string& path, const Graph& graph, int64_t largest) {
  int64_t total = 0;
  for (const Initializer& t : graph.initializers) total += int64_t(t.value.bytes());
  std::optional<FileWriter> beside;
  std::string data_path = path + ".data";
  if (total > largest) beside.emplace(data_path);
  FileWriter file(path);

  // Each initializer as what stands before its values; the values are not copied.
  std::vector<std::string> heads;
  Message first, last;
  for (const Node& n : graph.nodes) first.add(1, node(n));
  first.text(2, graph.name);
  for (const Port& p : graph.inputs) last.add(11, port(p));
  for (const Port& p : graph.outputs) last.add(12, port(p));
  int64_t offset = 0, size = int64_t(first.bytes().size() + last.bytes().size());
  for (const Initializer& t : graph.initializers) {
    Message m = tensor(t), head;
    bool outside = beside && is_floating(t.value.dtype());
    int64_t bytes = int64_t(t.value.bytes()), inside = outside ? 0 : bytes;
    if (outside) {
      m.add(13, pair("location", std::filesystem::path(data_path).filename().string()));
      m.add(13, pair("offset", std::to_string(offset)));
      m.add(13, pair("length", std::to_string(bytes))).number(14, 1);
      beside->write(t.value.raw(), size_t(bytes));
      offset += bytes;
    } else {
      m.begin(9, bytes);
    }
    head.begin(5, int64_t(m.bytes().size()) + inside);
    heads.push_back(head.bytes() + m.bytes());
    size += int64_t(heads.back().size()) + inside;
  }

  Message model;
  model.number(1, 8).text(2, "pupil").add(8, Message().text(1, "").number(2, 17));
  for (auto& [key, value] : graph.metadata) model.add(14, pair(key, value));
  model.begin(7, size);
  file.write(model.bytes());
  file.write(first.bytes());
  for (size_t k = 0; k < heads.size(); k++) {
    file.write(heads[k]);
    if (!beside || !is_floating(graph.initializers[k].value.dtype()))
      file.write(graph.initializers[k].value.raw(), graph.initializers[k].value.bytes());
  }
  file.write(last.bytes());
  if (beside) beside->commit();
  file.commit();
}

}  // namespace pupil::data::onnx
