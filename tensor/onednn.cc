#include "onednn.h"

#include <omp.h>

#include <dnnl.hpp>
#include <mutex>
#include <unordered_map>

#include "launch.h"
#include "memory.h"
#include "runtime.h"

namespace pupil::onednn {
namespace {

using dnnl::algorithm;
using dnnl::memory;
using Arguments = std::unordered_map<int, memory>;
constexpr auto kFloat = memory::data_type::f32;

memory::data_type type_of(DType dtype) {
  return dtype == DType::bf16 ? memory::data_type::bf16 : kFloat;
}

// The sizes, strides and options that tell two primitives apart.
using Key = std::vector<int64_t>;
struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t h = 1469598103934665603u;
    for (int64_t v : key) h = (h ^ uint64_t(v)) * 1099511628211u, h ^= h >> 29;
    return size_t(h);
  }
};

// Memory that a primitive needs only while it runs: one block for all, grown when needed.
class Scratch {
 public:
  void* get(size_t bytes) {
    if (bytes > bytes_) {
      ModelScope model;
      block_ = Tensor();
      block_ = empty({int64_t(bytes)}, DType::u8);
      bytes_ = bytes;
    }
    return block_ ? block_.raw() : nullptr;
  }

 private:
  Tensor block_;
  size_t bytes_ = 0;
};

struct Context {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::mutex mutex;
  Scratch scratchpad, packed;
};

// Never destroyed: oneDNN's own statics may go first.
Context& context() {
  static Context& c = *new Context;
  return c;
}

// One caller at a time. Also while a primitive is made: it is cut for the threads of that moment.
struct Turn {
  std::lock_guard<std::mutex> lock{context().mutex};
  ThreadLimit threads{library_threads()};
};

// One primitive with its arguments; data pointers are set at each call.
struct Primitive {
  dnnl::primitive primitive;
  Arguments arguments;
  size_t scratch_bytes = 0;

  void add(int which, const memory::desc& desc) {
    arguments.emplace(which, memory(desc, context().engine, nullptr));
  }
  void point(int which, const void* data) {
    arguments.at(which).set_data_handle(const_cast<void*>(data));
  }
  // The same primitive for a thread beside others, with images and memory of its own. Those that
  // only read the rest share it: to point to it writes zeros into its padding.
  Primitive another() const {
    Primitive p = *this;
    for (auto& [which, argument] : arguments)
      if (which != DNNL_ARG_WEIGHTS && which != DNNL_ARG_BIAS) p.point_apart(which, nullptr);
    return p;
  }
  // As point(), and leaves alone what shares the argument with this one.
  void point_apart(int which, const void* data) {
    memory& argument = arguments.at(which);
    argument = memory(argument.get_desc(), context().engine, const_cast<void*>(data));
  }
  void run() { run(context().scratchpad.get(scratch_bytes)); }
  void run(void* scratch) {
    if (scratch_bytes) point(DNNL_ARG_SCRATCHPAD, scratch);
    primitive.execute(context().stream, arguments);
  }
};

template <class Desc>
Primitive make_primitive(const Desc& desc, dnnl::primitive primitive) {
  Primitive p;
  p.primitive = std::move(primitive);
  p.scratch_bytes = desc.scratchpad_desc().get_size();
  if (p.scratch_bytes) p.add(DNNL_ARG_SCRATCHPAD, desc.scratchpad_desc());
  return p;
}

dnnl::primitive_attr attributes() {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attr;
}

template <class Desc>
bool is_reference(const Desc& desc) {
  return std::string_view(desc.impl_info_str()).find("ref") != std::string_view::npos;
}

Primitive make_reorder(const memory::desc& from, const memory::desc& to, bool add) {
  dnnl::primitive_attr attr = attributes();
  if (add) {
    dnnl::post_ops ops;
    ops.append_sum(1);
    attr.set_post_ops(ops);
  }
  Context& c = context();
  dnnl::reorder::primitive_desc desc(c.engine, from, c.engine, to, attr);
  Primitive p = make_primitive(desc, dnnl::reorder(desc));
  p.add(DNNL_ARG_FROM, from);
  p.add(DNNL_ARG_TO, to);
  return p;
}

// What is kept per key. `usable` false: oneDNN refused, do not ask again.
struct Entry {
  bool usable = false;
  Primitive main, reorder, reorder_add;
  std::vector<Primitive> blocks, last_block;  // of a product that is cut, one for each thread
  size_t packed_bytes = 0;
};

// A run uses a few hundred shapes; a program that keeps inventing new ones starts over.
constexpr size_t kMaxEntries = 4096;

template <class Build>
Entry& find(const Key& key, Build build) {
  static auto& entries = *new std::unordered_map<Key, Entry, KeyHash>;
  auto it = entries.find(key);
  if (it != entries.end()) return it->second;
  if (entries.size() >= kMaxEntries) entries.clear();
  Entry entry;
  try {
    build(entry);
    entry.usable = true;
  } catch (const dnnl::error&) {
    entry = {};
  }
  return entries.emplace(key, std::move(entry)).first->second;
}

enum Kind : int64_t { kMatmul, kForward, kInputGradient, kWeightGradient, kReorder };

memory::desc image_desc(int64_t n, int64_t c, int64_t h, int64_t w, Layout layout, DType dtype) {
  using tag = memory::format_tag;
  return {{n, c, h, w},
          type_of(dtype),
          layout == Layout::nhwc      ? tag::nhwc
          : layout == Layout::nchw16c ? tag::nChw16c
                                      : tag::nchw};
}

// Everything a convolution primitive is made of, in oneDNN's words.
struct ConvDescs {
  memory::desc x, y, weight_plain, weight_any, weight_gradient, bias;
  memory::dims strides, dilations, padding, padding_end;

  explicit ConvDescs(const Convolution& conv) {
    const ConvGeometry& s = conv.shape;
    x = image_desc(s.batch, s.channels, s.height, s.width, conv.x, conv.dtype);
    y = image_desc(s.batch, s.outputs, s.out_height, s.out_width, conv.y, conv.dtype);
    memory::dims w{s.group_outputs, s.group_channels, s.kernel_height, s.kernel_width};
    if (s.groups > 1) w.insert(w.begin(), s.groups);
    using tag = memory::format_tag;
    weight_plain = memory::desc(w, kFloat, s.groups > 1 ? tag::goihw : tag::oihw);
    weight_any = memory::desc(w, type_of(conv.dtype), tag::any);
    weight_gradient = memory::desc(w, kFloat, tag::any);
    bias = memory::desc({s.outputs}, kFloat, tag::a);
    strides = {s.stride_h, s.stride_w};
    dilations = {s.dilation_h - 1, s.dilation_w - 1};
    padding = {s.padding_h, s.padding_w};
    auto end = [](int64_t in, int64_t kernel, int64_t out, int64_t stride, int64_t pad,
                  int64_t dilation) {
      return (out - 1) * stride + dilation * (kernel - 1) + 1 - in - pad;
    };
    padding_end = {
        end(s.height, s.kernel_height, s.out_height, s.stride_h, s.padding_h, s.dilation_h),
        end(s.width, s.kernel_width, s.out_width, s.stride_w, s.padding_w, s.dilation_w)};
  }
};

constexpr int kResidual = DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1;
// Where Winograd pays, ours is used (ops/winograd.h); newer versions of oneDNN have none.
constexpr algorithm kDirect = algorithm::convolution_direct;
using ForwardDesc = dnnl::convolution_forward::primitive_desc;
using InputGradientDesc = dnnl::convolution_backward_data::primitive_desc;
using WeightGradientDesc = dnnl::convolution_backward_weights::primitive_desc;

dnnl::primitive_attr attributes_of(const ConvDescs& d, const Tail& tail) {
  dnnl::primitive_attr attr = attributes();
  dnnl::post_ops ops;
  if (tail.residual) ops.append_binary(algorithm::binary_add, d.y);
  auto append = [&](algorithm eltwise, float alpha, float beta) {
#if DNNL_VERSION_MAJOR >= 3
    ops.append_eltwise(eltwise, alpha, beta);
#else
    ops.append_eltwise(1, eltwise, alpha, beta);
#endif
  };
  if (tail.activation == Activation::relu) append(algorithm::eltwise_relu, 0, 0);
  if (tail.activation == Activation::relu6) append(algorithm::eltwise_clip, 0, 6);
  if (tail.activation == Activation::hard_swish)
    append(algorithm::eltwise_hardswish, 1 / 6.0f, 0.5f);
  attr.set_post_ops(ops);
  return attr;
}

ForwardDesc forward_desc(const ConvDescs& d, bool bias, const Tail& tail) {
  auto kind = dnnl::prop_kind::forward_training;
  const dnnl::engine& engine = context().engine;
  dnnl::primitive_attr attr = attributes_of(d, tail);
  memory::desc b = bias ? d.bias : memory::desc();
#if DNNL_VERSION_MAJOR >= 3
  return ForwardDesc(engine, kind, kDirect, d.x, d.weight_any, b, d.y, d.strides, d.dilations,
                     d.padding, d.padding_end, attr);
#else
  if (bias)
    return ForwardDesc({kind, kDirect, d.x, d.weight_any, b, d.y, d.strides, d.dilations, d.padding,
                        d.padding_end},
                       attr, engine);
  return ForwardDesc(
      {kind, kDirect, d.x, d.weight_any, d.y, d.strides, d.dilations, d.padding, d.padding_end},
      attr, engine);
#endif
}

template <class Desc>
Desc backward_desc(const ConvDescs& d, const memory::desc& weight) {
  const dnnl::engine& engine = context().engine;
  ForwardDesc hint = forward_desc(d, false, {});
  // Data: gradient of x from weights; weights: gradient of the weights from x. Same order.
#if DNNL_VERSION_MAJOR >= 3
  return Desc(engine, kDirect, d.x, weight, d.y, d.strides, d.dilations, d.padding, d.padding_end,
              hint, attributes());
#else
  return Desc({kDirect, d.x, weight, d.y, d.strides, d.dilations, d.padding, d.padding_end},
              attributes(), engine, hint);
#endif
}

Key conv_key(Kind kind, const Convolution& conv, int extra) {
  const ConvGeometry& s = conv.shape;
  return {kind,
          s.batch,
          s.channels,
          s.height,
          s.width,
          s.outputs,
          s.out_height,
          s.out_width,
          s.kernel_height,
          s.kernel_width,
          s.groups,
          s.stride_h,
          s.stride_w,
          s.padding_h,
          s.padding_w,
          s.dilation_h,
          s.dilation_w,
          int(conv.x),
          int(conv.y),
          int(conv.dtype),
          extra,
          omp_get_max_threads()};
}

Entry& forward_entry(const Convolution& conv, bool bias, const Tail& tail) {
  int what = bias + 2 * (tail.residual != nullptr) + 4 * int(tail.activation);
  return find(conv_key(kForward, conv, what), [&](Entry& e) {
    ConvDescs d(conv);
    ForwardDesc desc = forward_desc(d, bias, tail);
    if (is_reference(desc)) throw dnnl::error(dnnl_unimplemented, "only a reference kernel");
    e.main = make_primitive(desc, dnnl::convolution_forward(desc));
    e.main.add(DNNL_ARG_SRC, d.x);
    e.main.add(DNNL_ARG_WEIGHTS, desc.weights_desc());
    e.main.add(DNNL_ARG_DST, d.y);
    if (bias) e.main.add(DNNL_ARG_BIAS, d.bias);
    if (tail.residual) e.main.add(kResidual, d.y);
    e.packed_bytes = desc.weights_desc().get_size();
    e.reorder = make_reorder(d.weight_plain, desc.weights_desc(), false);
  });
}

void pack_weights(Entry& e, const float* weight, void* packed) {
  e.reorder.point(DNNL_ARG_FROM, weight);
  e.reorder.point(DNNL_ARG_TO, packed);
  e.reorder.run();
}

}  // namespace

struct PackedWeights {
  std::vector<std::pair<memory::desc, Tensor>> orders;
};
std::shared_ptr<PackedWeights> pack_later() { return std::make_shared<PackedWeights>(); }

namespace {

Tensor packed_once(Entry& e, const float* weight, PackedWeights& kept) {
  memory::desc order = e.main.arguments.at(DNNL_ARG_WEIGHTS).get_desc();
  for (auto& [known, packed] : kept.orders)
    if (known == order) return packed;
  ModelScope model;
  Tensor packed = empty({int64_t(e.packed_bytes)}, DType::u8);
  pack_weights(e, weight, packed.raw());
  kept.orders.emplace_back(order, packed);
  return packed;
}

}  // namespace

bool has_convolution(const Convolution& conv) {
  Turn turn;
  return forward_entry(conv, false, {}).usable;
}

bool convolution(const Convolution& conv, const void* x, const float* weight, const float* bias,
                 void* y, const Tail& tail, PackedWeights* kept) {
  Turn turn;
  Entry& e = forward_entry(conv, bias, tail);
  if (!e.usable) return false;
  if (kept) {
    e.main.point(DNNL_ARG_WEIGHTS, packed_once(e, weight, *kept).raw());
  } else {
    void* packed = context().packed.get(e.packed_bytes);
    pack_weights(e, weight, packed);
    e.main.point(DNNL_ARG_WEIGHTS, packed);
  }
  e.main.point(DNNL_ARG_SRC, x);
  e.main.point(DNNL_ARG_DST, y);
  if (bias) e.main.point(DNNL_ARG_BIAS, bias);
  if (tail.residual) e.main.point(kResidual, tail.residual);
  e.main.run();
  return true;
}

namespace {

class PrimitiveOfThread final : public ThreadConvolution {
 public:
  PrimitiveOfThread(Primitive primitive, Tensor weights)
      : primitive_(std::move(primitive)), weights_(std::move(weights)) {}
  size_t scratch_bytes() const override { return primitive_.scratch_bytes; }
  std::unique_ptr<ThreadConvolution> another() const override {
    return std::make_unique<PrimitiveOfThread>(primitive_.another(), weights_);
  }
  void run(const void* x, const void* residual, void* y, void* scratch) override {
    primitive_.point(DNNL_ARG_SRC, x);
    primitive_.point(DNNL_ARG_DST, y);
    if (residual) primitive_.point(kResidual, residual);
    primitive_.run(scratch);
  }

 private:
  Primitive primitive_;
  Tensor weights_;
};

}  // namespace

std::unique_ptr<ThreadConvolution> thread_convolution(const Convolution& conv, const float* weight,
                                                      const float* bias, const Tail& tail,
                                                      PackedWeights* kept) {
  Turn turn;
  ThreadLimit one(1);
  Entry& e = forward_entry(conv, bias, tail);
  if (!e.usable) return nullptr;
  Tensor packed;
  if (kept) {
    packed = packed_once(e, weight, *kept);
  } else {
    packed = empty({int64_t(e.packed_bytes)}, DType::u8);
    pack_weights(e, weight, packed.raw());
  }
  Primitive own = e.main.another();  // apart from the next layer of these sizes
  own.point_apart(DNNL_ARG_WEIGHTS, packed.raw());
  if (bias) own.point_apart(DNNL_ARG_BIAS, bias);
  return std::make_unique<PrimitiveOfThread>(std::move(own), packed);
}

bool convolution_input_gradient(const Convolution& conv, const void* gy, const float* weight,
                                void* gx) {
  Turn turn;
  Entry& e = find(conv_key(kInputGradient, conv, false), [&](Entry& entry) {
    ConvDescs d(conv);
    auto desc = backward_desc<InputGradientDesc>(d, d.weight_any);
    entry.main = make_primitive(desc, dnnl::convolution_backward_data(desc));
    entry.main.add(DNNL_ARG_DIFF_DST, d.y);
    entry.main.add(DNNL_ARG_WEIGHTS, desc.weights_desc());
    entry.main.add(DNNL_ARG_DIFF_SRC, d.x);
    entry.packed_bytes = desc.weights_desc().get_size();
    entry.reorder = make_reorder(d.weight_plain, desc.weights_desc(), false);
  });
  if (!e.usable) return false;
  void* packed = context().packed.get(e.packed_bytes);
  pack_weights(e, weight, packed);
  e.main.point(DNNL_ARG_WEIGHTS, packed);
  e.main.point(DNNL_ARG_DIFF_DST, gy);
  e.main.point(DNNL_ARG_DIFF_SRC, gx);
  e.main.run();
  return true;
}

bool convolution_weight_gradient(const Convolution& conv, const void* x, const void* gy, float* gw,
                                 float beta) {
  Turn turn;
  Entry& e = find(conv_key(kWeightGradient, conv, false), [&](Entry& entry) {
    ConvDescs d(conv);
    auto desc = backward_desc<WeightGradientDesc>(d, d.weight_gradient);
    entry.main = make_primitive(desc, dnnl::convolution_backward_weights(desc));
    entry.main.add(DNNL_ARG_SRC, d.x);
    entry.main.add(DNNL_ARG_DIFF_DST, d.y);
    entry.main.add(DNNL_ARG_DIFF_WEIGHTS, desc.diff_weights_desc());
    entry.packed_bytes = desc.diff_weights_desc().get_size();
    entry.reorder = make_reorder(desc.diff_weights_desc(), d.weight_plain, false);
    entry.reorder_add = make_reorder(desc.diff_weights_desc(), d.weight_plain, true);
  });
  if (!e.usable) return false;
  void* packed = context().packed.get(e.packed_bytes);
  e.main.point(DNNL_ARG_SRC, x);
  e.main.point(DNNL_ARG_DIFF_DST, gy);
  e.main.point(DNNL_ARG_DIFF_WEIGHTS, packed);
  e.main.run();
  Primitive& reorder = beta == 0 ? e.reorder : e.reorder_add;
  reorder.point(DNNL_ARG_FROM, packed);
  reorder.point(DNNL_ARG_TO, gw);
  reorder.run();
  return true;
}

Bf16 bf16_units() {
  auto has = [](dnnl::cpu_isa isa) {
    return (int(dnnl::get_effective_cpu_isa()) & int(isa)) == int(isa);
  };
  if (!has(dnnl::cpu_isa::avx512_core_bf16)) return Bf16::none;
  return has(dnnl::cpu_isa::avx512_core_amx) ? Bf16::tiles : Bf16::dot_products;
}

bool convert_layout(const Tensor& from, const Tensor& to) {
  Turn turn;
  const Shape& s = from.shape();
  Entry& e = find({kReorder, s[0], s[1], s[2], s[3], int(from.layout()), int(to.layout()),
                   library_threads(), int(from.dtype())},
                  [&](Entry& entry) {
                    auto image = [&](Layout layout) {
                      return image_desc(s[0], s[1], s[2], s[3], layout, from.dtype());
                    };
                    entry.main = make_reorder(image(from.layout()), image(to.layout()), false);
                  });
  if (!e.usable) return false;
  e.main.point(DNNL_ARG_FROM, from.raw());
  e.main.point(DNNL_ARG_TO, to.raw());
  e.main.run();
  return true;
}

namespace {

constexpr int64_t kManyRows = 1024, kBlockRows = 4 * kRowStep, kBlocksOfThread = 4;

struct MatmulDescs {
  memory::desc a, b, c, bias;

  // packed: b in the order that oneDNN likes.
  MatmulDescs(const Matmul& mm, bool packed) {
    memory::dims a_dims, b_dims, c_dims, bias_dims, a_strides, b_strides, c_strides;
    for (auto& axis : mm.batch) {
      a_dims.push_back(axis.in_a ? axis.size : 1);
      b_dims.push_back(axis.in_b ? axis.size : 1);
      c_dims.push_back(axis.size);
      bias_dims.push_back(1);
      a_strides.push_back(axis.in_a ? axis.in_a : mm.m.size * mm.k.size);
      b_strides.push_back(axis.in_b ? axis.in_b : mm.k.size * mm.n.size);
      c_strides.push_back(axis.in_c);
    }
    auto append = [](memory::dims& to, int64_t p, int64_t q) { to.insert(to.end(), {p, q}); };
    append(a_dims, mm.m.size, mm.k.size);
    append(b_dims, mm.k.size, mm.n.size);
    append(c_dims, mm.m.size, mm.n.size);
    append(bias_dims, 1, mm.n.size);
    append(a_strides, mm.m.in_a, mm.k.in_a);
    append(b_strides, mm.k.in_b, mm.n.in_b);
    append(c_strides, mm.m.in_c, mm.n.in_c);
    memory::dims bias_strides(bias_dims.size(), mm.n.size);
    bias_strides.back() = 1;
    a = {a_dims, type_of(mm.dtype), a_strides};
    b = packed ? memory::desc(b_dims, type_of(mm.dtype), memory::format_tag::any)
               : memory::desc(b_dims, type_of(mm.dtype), b_strides);
    c = {c_dims, type_of(mm.out), c_strides};
    bias = {bias_dims, kFloat, bias_strides};
  }

  Primitive primitive(float beta, bool with_bias) const {
    dnnl::primitive_attr attr = attributes();
    if (beta != 0) {
      dnnl::post_ops ops;
      ops.append_sum(beta);
      attr.set_post_ops(ops);
    }
    using Desc = dnnl::matmul::primitive_desc;
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::engine& engine = context().engine;
    Desc desc = with_bias ? Desc(engine, a, b, bias, c, attr) : Desc(engine, a, b, c, attr);
#else
    Desc desc = with_bias ? Desc({a, b, bias, c}, attr, context().engine)
                          : Desc({a, b, c}, attr, context().engine);
#endif
    Primitive p = make_primitive(desc, dnnl::matmul(desc));
    p.add(DNNL_ARG_SRC, a);
    p.add(DNNL_ARG_WEIGHTS, desc.weights_desc());
    p.add(DNNL_ARG_DST, c);
    if (with_bias) p.add(DNNL_ARG_BIAS, bias);
    return p;
  }
};

// Of the whole product, or with `rows` of a block of so many, which one thread computes, and of the
// last block.
Entry& matmul_entry(const Matmul& mm, bool bias, bool pack, int64_t rows) {
  int threads = library_threads();
  Key key{kMatmul,   mm.m.size, mm.n.size, mm.k.size, mm.m.in_a, mm.m.in_c, mm.n.in_b,
          mm.k.in_a, mm.k.in_b, bias,      pack,      rows,      threads};
  int32_t beta_bits;
  memcpy(&beta_bits, &mm.beta, 4);
  key.insert(key.end(), {beta_bits, int(mm.dtype), int(mm.out)});
  for (auto& axis : mm.batch) key.insert(key.end(), {axis.size, axis.in_a, axis.in_b, axis.in_c});
  return find(key, [&](Entry& entry) {
    Matmul part = mm;
    if (rows) part.m.size = rows;
    memory::desc plain = MatmulDescs(part, false).b, packed;
    {
      ThreadLimit limit(rows ? 1 : threads);
      entry.main = MatmulDescs(part, pack).primitive(mm.beta, bias);
      packed = entry.main.arguments.at(DNNL_ARG_WEIGHTS).get_desc();
      if (rows) {
        part.m.size = (mm.m.size - 1) % rows + 1;
        MatmulDescs last(part, false);
        last.b = packed;
        Primitive rest = last.primitive(mm.beta, bias);
        for (int thread = 0; thread < threads; thread++) {
          entry.blocks.push_back(entry.main.another());
          entry.last_block.push_back(rest.another());
        }
      }
    }
    if (packed != plain) {
      entry.packed_bytes = packed.get_size();
      entry.reorder = make_reorder(plain, packed, false);
    }
  });
}

// Threads of unequal speed, as beside other load or on cores of two kinds, take unequal numbers of
// blocks and end together. A row's bits do not depend on who computes it.
void run_blocks(Entry& e, const Matmul& mm, const void* a, const void* b, const float* bias,
                void* c, const RowsDone& done) {
  int64_t count = (mm.m.size + kBlockRows - 1) / kBlockRows;
  int64_t a_step = kBlockRows * mm.m.in_a * int64_t(size_of(mm.dtype)),
          c_step = kBlockRows * mm.m.in_c * int64_t(size_of(mm.out));
  size_t scratch = std::max(e.main.scratch_bytes, e.last_block[0].scratch_bytes);
  char* scratchpads = static_cast<char*>(context().scratchpad.get(scratch * e.blocks.size()));
  for (Primitive* p : {&e.blocks[0], &e.last_block[0]}) {  // shared with the other threads'
    p->point(DNNL_ARG_WEIGHTS, b);
    if (bias) p->point(DNNL_ARG_BIAS, bias);
  }
#pragma omp parallel num_threads(int(e.blocks.size()))
  {
    size_t thread = size_t(omp_get_thread_num());
    char* scratchpad = scratchpads + scratch * thread;
    Primitive &block = e.blocks[thread], &last = e.last_block[thread];
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < count; i++) {
      Primitive& p = i + 1 < count ? block : last;
      p.point(DNNL_ARG_SRC, static_cast<const char*>(a) + i * a_step);
      p.point(DNNL_ARG_DST, static_cast<char*>(c) + i * c_step);
      p.run(scratchpad);
      if (done) done(i * kBlockRows, std::min(mm.m.size, (i + 1) * kBlockRows));
    }
  }
}

// c (m, n) = a (m, k) b (k, n) + beta c in rows; the strides of a and b are those of two axes.
bool blas(int64_t m, int64_t n, int64_t k, const void* a, int64_t a_m, int64_t a_k, const void* b,
          int64_t b_k, int64_t b_n, float beta, void* c, int64_t c_m) {
  return dnnl_sgemm(a_k == 1 ? 'N' : 'T', b_n == 1 ? 'N' : 'T', m, n, k, 1,
                    static_cast<const float*>(a), a_k == 1 ? a_m : a_k,
                    static_cast<const float*>(b), b_n == 1 ? b_k : b_n, beta,
                    static_cast<float*>(c), c_m) == dnnl_success;
}

// Of the sum of many rows, as weights' gradients are, oneDNN's BLAS is 5 to 10 % faster than its
// matmul, and twice as fast where that has no good blocks (768 x 3072 of 1,576 rows). Of very many
// rows it takes 7 to 11 % longer for a tall result (768 x 192) than for the transposed one.
constexpr int64_t kVeryManyRows = 4096;
bool long_sum(const Matmul& mm, const void* a, const void* b, void* c) {
  int64_t m = mm.m.size, n = mm.n.size, k = mm.k.size;
  if (m <= n || k < kVeryManyRows)
    return blas(m, n, k, a, mm.m.in_a, mm.k.in_a, b, mm.k.in_b, mm.n.in_b, mm.beta, c, mm.m.in_c);
  float* transposed = static_cast<float*>(context().scratchpad.get(size_t(m * n) * sizeof(float)));
  if (!blas(n, m, k, b, mm.n.in_b, mm.k.in_b, a, mm.k.in_a, mm.m.in_a, 0, transposed, m))
    return false;
  constexpr int64_t kTile = 16;  // a cache line of floats on both sides
  parallel_for((m + kTile - 1) / kTile, m * n, [=, &mm](int64_t tile) {
    int64_t end = std::min(m, (tile + 1) * kTile);
    for (int64_t column = 0; column < n; column += kTile)
      for (int64_t i = tile * kTile; i < end; i++)
        for (int64_t j = column; j < std::min(n, column + kTile); j++) {
          float& to = static_cast<float*>(c)[i * mm.m.in_c + j];
          to = transposed[j * m + i] + (mm.beta == 0 ? 0 : mm.beta * to);
        }
  });
  return true;
}

// delivered: it has called `done`.
bool product(const Matmul& mm, const void* a, const void* b, const float* bias, void* c,
             const RowsDone& done, bool& delivered) {
  Turn turn;
  // Of many rows times a small matrix, the matrix in the order that the kernel likes: 4 to 8 % of
  // the product, for a copy of a hundredth of it.
  bool pack = mm.batch.empty() && mm.m.size >= kManyRows && mm.m.size >= mm.k.size;
  if (!pack && mm.batch.empty() && mm.k.size >= kManyRows && !bias && mm.dtype == DType::f32)
    return long_sum(mm, a, b, c);
  bool blocks = pack && mm.m.size >= kBlockRows * kBlocksOfThread * library_threads();
  Entry& e = matmul_entry(mm, bias != nullptr, pack, blocks ? kBlockRows : 0);
  if (!e.usable) return false;
  if (e.packed_bytes) {
    void* packed = context().packed.get(e.packed_bytes);
    e.reorder.point(DNNL_ARG_FROM, b);
    e.reorder.point(DNNL_ARG_TO, packed);
    e.reorder.run();
    b = packed;
  }
  if (blocks) {
    // With one thread of the library for several of the program, what is done with the rows waits.
    delivered = library_threads() == cpu_threads();
    run_blocks(e, mm, a, b, bias, c, delivered ? done : RowsDone());
    return true;
  }
  e.main.point(DNNL_ARG_SRC, a);
  e.main.point(DNNL_ARG_WEIGHTS, b);
  e.main.point(DNNL_ARG_DST, c);
  if (bias) e.main.point(DNNL_ARG_BIAS, bias);
  e.main.run();
  return true;
}

}  // namespace

void each_step(const RowsDone& done, int64_t rows, int64_t columns) {
  if (!done) return;
  parallel_for((rows + kRowStep - 1) / kRowStep, rows * columns, [&done, rows](int64_t step) {
    done(step * kRowStep, std::min(rows, (step + 1) * kRowStep));
  });
}

bool matmul(const Matmul& mm, const void* a, const void* b, const float* bias, void* c,
            const RowsDone& done) {
  PUPIL_CHECK(!done || mm.batch.empty(), "matmul: rows of a batch of products");
  bool delivered = false;
  if (!product(mm, a, b, bias, c, done, delivered)) return false;
  if (!delivered) each_step(done, mm.m.size, mm.n.size);
  return true;
}

}  // namespace pupil::onednn
