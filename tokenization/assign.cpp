// Nearest centroid of every point, and the sums of the points of every centroid, in one pass.
//
// Scores x.c - |c|^2 / 2 are bf16 products summed in fp32 (vdpbf16ps). A tile of points times a
// panel of 64 centroids stays in registers, 6 points at a time, and so does the running maximum:
// no score is ever written to memory. Sums are of the fp32 points, in double.
//
// Points and centroids are taken relative to `shift` before rounding: distances do not change, and
// embeddings with a large mean keep their digits.

#include <immintrin.h>
#include <omp.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int kLanes = 16;
constexpr int kVectors = 4;                  // vectors of centroids in a panel
constexpr int kPanel = kLanes * kVectors;    // centroids in a panel
constexpr int kRows = 6;                     // points in registers
constexpr int kTile = 40 * kRows;            // points of a tile

uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits += 0x7FFF + ((bits >> 16) & 1);
  return static_cast<uint16_t>(bits >> 16);
}

// (k, dim) -> panels of [pair of dimensions][64 centroids][2], zeros beyond the last centroid.
void pack_centroids(const float* centroids, const float* shift, int64_t k, int64_t dim,
                    int64_t pairs, uint16_t* packed, float* start) {
  const int64_t panels = (k + kPanel - 1) / kPanel;
  for (int64_t code = 0; code < panels * kPanel; ++code) {
    uint16_t* panel = packed + (code / kPanel) * pairs * kPanel * 2;
    double square = 0;
    for (int64_t d = 0; d < pairs * 2; ++d) {
      const float value = code < k && d < dim ? centroids[code * dim + d] - shift[d] : 0.0f;
      square += static_cast<double>(value) * value;
      panel[(d / 2) * kPanel * 2 + (code % kPanel) * 2 + d % 2] = to_bf16(value);
    }
    start[code] = code < k ? static_cast<float>(-0.5 * square) : -3e38f;
  }
}

void score_rows(const uint32_t* rows, int64_t pairs, const uint16_t* panel, const float* start,
                int32_t first_block, float* best, int32_t* block) {
  __m512 sums[kRows][kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const __m512 initial = _mm512_loadu_ps(start + v * kLanes);
    for (int r = 0; r < kRows; ++r) sums[r][v] = initial;
  }
  for (int64_t p = 0; p < pairs; ++p) {
    __m512i codes[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      codes[v] = _mm512_loadu_si512(panel + (p * kVectors + v) * kLanes * 2);
    }
    for (int r = 0; r < kRows; ++r) {
      const __m512i pair = _mm512_set1_epi32(static_cast<int32_t>(rows[r * pairs + p]));
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], reinterpret_cast<__m512bh>(pair),
                                      reinterpret_cast<__m512bh>(codes[v]));
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    __m512 highest = _mm512_loadu_ps(best + r * kLanes);
    __m512i where = _mm512_loadu_si512(block + r * kLanes);
    for (int v = 0; v < kVectors; ++v) {
      const __mmask16 higher = _mm512_cmp_ps_mask(sums[r][v], highest, _CMP_GT_OQ);
      highest = _mm512_mask_mov_ps(highest, higher, sums[r][v]);
      where = _mm512_mask_mov_epi32(where, higher, _mm512_set1_epi32(first_block + v));
    }
    _mm512_storeu_ps(best + r * kLanes, highest);
    _mm512_storeu_si512(block + r * kLanes, where);
  }
}

}  // namespace

extern "C" void assign(const float* points, int64_t n, int64_t dim, const float* centroids,
                       int64_t k, const float* shift, int32_t* codes, double* sums,
                       int64_t* counts, int num_threads) {
  const int64_t pairs = (dim + 1) / 2;
  const int64_t panels = (k + kPanel - 1) / kPanel;
  std::vector<uint16_t> packed(panels * pairs * kPanel * 2);
  std::vector<float> start(panels * kPanel);
  pack_centroids(centroids, shift, k, dim, pairs, packed.data(), start.data());

#pragma omp parallel num_threads(num_threads)
  {
    std::vector<uint32_t> rows(kTile * pairs);
    std::vector<float> best(kTile * kLanes);
    std::vector<int32_t> block(kTile * kLanes);
    std::vector<double> own(sums ? k * dim : 0);
    std::vector<int64_t> own_counts(sums ? k : 0);

#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < (n + kTile - 1) / kTile; ++tile) {
      const int64_t first = tile * kTile;
      const int64_t size = n - first < kTile ? n - first : kTile;
      uint16_t* halves = reinterpret_cast<uint16_t*>(rows.data());
      for (int64_t i = 0; i < kTile; ++i) {
        const float* point = points + (first + (i < size ? i : 0)) * dim;
        uint16_t* half = halves + i * pairs * 2;
        for (int64_t d = 0; d < dim; ++d) half[d] = to_bf16(point[d] - shift[d]);
        if (dim % 2) half[dim] = 0;
      }
      for (auto& value : best) value = -3.4e38f;
      std::memset(block.data(), 0, block.size() * sizeof(int32_t));
      for (int64_t panel = 0; panel < panels; ++panel) {
        for (int64_t i = 0; i < size; i += kRows) {
          score_rows(rows.data() + i * pairs, pairs, packed.data() + panel * pairs * kPanel * 2,
                     start.data() + panel * kPanel, static_cast<int32_t>(panel * kVectors),
                     best.data() + i * kLanes, block.data() + i * kLanes);
        }
      }
      for (int64_t i = 0; i < size; ++i) {
        float highest = -3.4e38f;
        int32_t code = 0;
        for (int lane = 0; lane < kLanes; ++lane) {
          const float score = best[i * kLanes + lane];
          const int32_t here = block[i * kLanes + lane] * kLanes + lane;
          if (score > highest || (score == highest && here < code)) {
            highest = score;
            code = here;
          }
        }
        codes[first + i] = code;
        if (sums) {
          const float* point = points + (first + i) * dim;
          double* sum = own.data() + code * dim;
          for (int64_t d = 0; d < dim; ++d) sum[d] += point[d];
          ++own_counts[code];
        }
      }
    }
    if (sums) {
#pragma omp critical
      {
        for (int64_t i = 0; i < k * dim; ++i) sums[i] += own[i];
        for (int64_t i = 0; i < k; ++i) counts[i] += own_counts[i];
      }
    }
  }
}
