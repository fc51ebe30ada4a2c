// 8-bit integers for the quantised product, under the same names at every level of vector.h:
//
// Bytes       4 * kLanes of them: four neighbours along the summed dimension of each of kLanes columns
// Integers    kLanes sums; add_quads(sum, digits, x) adds each column's four products of unsigned digits with signed x
#pragma once

#include "vector.h"

#if defined(__AVX512VNNI__)
#include "bytes_avx512.h"
#else
#include "bytes_avx2.h"
#endif
