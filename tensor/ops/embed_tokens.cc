// The input of a Vision Transformer in one pass: [class token, patches] + positions, Dosovitskiy et
// al. 2021 (arXiv 2010.11929), eq. 1.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"

namespace pupil {

template <class T>
struct EmbedTokens {
  const T *patches, *class_token, *positions;
  T* out;
  int64_t prefix, tokens, dim;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    using A = acc_t<T>;
    int64_t n = row / tokens, token = row % tokens;
    const T* from =
        token < prefix ? class_token : patches + (n * (tokens - prefix) + token - prefix) * dim;
    const T* place = positions + token * dim;
    T* to = out + row * dim;
    team.each(dim, [=](int64_t d) { to[d] = T(A(from[d]) + A(place[d])); });
  }
};

// Gradient of the patches: the rows behind the prefix.
template <class T>
struct PatchGradient {
  const T* gy;
  T* gx;
  int64_t prefix, tokens, dim;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    int64_t patches = tokens - prefix;
    const T* from = gy + (row / patches * tokens + prefix + row % patches) * dim;
    T* to = gx + row * dim;
    team.each(dim, [=](int64_t d) { to[d] = from[d]; });
  }
};

// Gradient of the positions: the sum over the batch.
template <class T>
struct BatchSum {
  using Sum = acc_t<T>;
  const T* gy;
  T* to;
  int64_t columns;
  PUPIL_HD Sum value(int64_t row, int64_t col) const { return Sum(gy[row * columns + col]); }
  PUPIL_HD void store(int64_t col, Sum sum) const { to[col] = T(sum); }
};

Tensor embed_tokens(const Tensor& patches, const Tensor& class_token, const Tensor& positions) {
  require_floating("embed_tokens", patches);
  int64_t prefix = bool(class_token);
  PUPIL_CHECK(patches.rank() == 3, "embed_tokens: patches ", patches.shape());
  int64_t batch = patches.dim(0), tokens = prefix + patches.dim(1), dim = patches.dim(2);
  PUPIL_CHECK(positions.shape() == (Shape{1, tokens, dim}) &&
                  (!prefix || class_token.shape() == (Shape{1, 1, dim})),
              "embed_tokens: patches ", patches.shape(), " do not fit positions ",
              positions.shape());
  DType wide = acc_dtype(patches.dtype());
  if (patches.dtype() != wide && positions.dtype() == wide)
    return to_dtype(embed_tokens(to_dtype(patches, wide), class_token, positions), patches.dtype());
  PUPIL_CHECK(
      positions.dtype() == patches.dtype() && (!prefix || class_token.dtype() == patches.dtype()),
      "embed_tokens: dtypes differ");
  Tensor x = patches.contiguous(), place = positions.contiguous();
  Tensor first = prefix ? class_token.contiguous() : Tensor();
  Tensor out = empty({batch, tokens, dim}, x.dtype(), x.device());
  dispatch(x.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    rows(x.device(), batch * tokens,
         EmbedTokens<T>{x.data<T>(), prefix ? first.data<T>() : nullptr, place.data<T>(),
                        out.data<T>(), prefix, tokens, dim},
         dim);
  });
  return record("embed_tokens", out, {patches, class_token, positions}, [=](Backward& b) {
    Tensor gy = b.gy.contiguous();
    dispatch(gy.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      Device device = gy.device();
      if (b[0].needed) {
        Tensor gx = empty({batch, tokens - prefix, dim}, gy.dtype(), device);
        rows(device, batch * (tokens - prefix),
             PatchGradient<T>{gy.data<T>(), gx.data<T>(), prefix, tokens, dim}, dim);
        b[0].give(gx);
      } else {
        b[0].none();
      }
      if (!b[1].needed && !b[2].needed) {
        b[1].none();
        return b[2].none();
      }
      Tensor sums = empty({1, tokens, dim}, gy.dtype(), device);
      cols(device, batch, tokens * dim, BatchSum<T>{gy.data<T>(), sums.data<T>(), tokens * dim});
      // The class token sees the sum over the batch too: the first row.
      if (b[1].needed)
        b[1].give(alias(sums, {1, 1, dim}, row_major_strides({1, 1, dim})).clone());
      else
        b[1].none();
      b[2].give(sums);
    });
  });
}

PUPIL_SAMPLES(embed_tokens) {
  auto with_class = [](auto& v) { return embed_tokens(v[0], v[1], v[2]); };
  auto without = [](auto& v) { return embed_tokens(v[0], Tensor(), v[1]); };
  s.add("class token", {{2, 3, 4}, {1, 1, 4}, {1, 4, 4}}, with_class);
  s.add("patches only", {{2, 3, 4}, {1, 3, 4}}, without);
  s.add("one token", {{1, 0, 3}, {1, 1, 3}, {1, 1, 3}}, with_class);
  s.add("empty batch", {{0, 2, 3}, {1, 1, 3}, {1, 3, 3}}, with_class);
  s.add("transposed", {{3, 2, 4}, {1, 3, 4}}, [](auto& v) {
    return embed_tokens(permute(v[0], {1, 0, 2}), Tensor(), v[1]);
  });
  s.add_error("positions", {{2, 3, 4}, {1, 3, 5}}, without);
}

}  // namespace pupil
