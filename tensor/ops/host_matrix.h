// What the operations of linalg.h share: matrices in host memory, without a graph.
#pragma once
#include "../linalg.h"

namespace pupil {

// The matrix a in dense host memory. Throws with the op's name unless it is a matrix of f64 or f32
// with finite elements.
Tensor host_matrix(const char* op, const Tensor& a);
void require_square(const char* op, const Tensor& a);

Tensor host_gradient(const Tensor& gy);  // a cotangent in dense host memory

// to = a b + beta to; `to` has dense rows, the others may be transposed views.
void product_into(const Tensor& to, const Tensor& a, const Tensor& b, double beta = 0);
Tensor product(const Tensor& a, const Tensor& b);

// sum of factor * matrix, plus diagonal * I; dense, of one dtype and shape.
struct Term {
  double factor;
  Tensor matrix;
};
Tensor combine(const std::vector<Term>& terms, double diagonal = 0);

// An output through which no gradient flows, said loudly: backward() throws `why` if one arrives.
Tensor without_gradient(const char* op, const char* why, const Tensor& out, const Tensor& input);

}  // namespace pupil
