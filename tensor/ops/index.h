// What the ops that choose or add by an index share (index_select, gather, embedding).
#pragma once
#include "broadcast.h"

namespace pupil {

// Dense and, where the host can look, within 0 .. whole - 1; throws with the op's name.
Tensor checked_index(const char* op, const Tensor& index, int64_t whole);

// The slices of x along an axis that index (n) names. Recorded; row `skip` gets no gradient.
Tensor select_slices(const char* op, const Tensor& x, const Tensor& index, int axis,
                     int64_t skip = -1);
// x with the slices of src added where index (n) says. Recorded.
Tensor add_slices(const char* op, const Tensor& x, int axis, const Tensor& index,
                  const Tensor& src);

}  // namespace pupil
