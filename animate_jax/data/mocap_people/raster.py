"""Skinning, rasterizing and shading, compiled by numba.

Plain loops without fast-math on one thread, so that a clip has the same pixels everywhere and callers may
run several processes. Shading is deferred: a z-buffer of triangle indices comes first, so that the cost of a pixel
does not grow with the layers of cloth under it.
"""

import inspect
import math

import numpy as np
from numba import njit

SKIN, TOP, BOTTOM, SHOE, HAIR, EYE = range(6)
PLAIN, STRIPES, VERTICAL_STRIPES, CHECKS, PRINT, BAND, RAGLAN, DOTS, HALVES, GRADIENT, SIDE_STRIPE = range(11)
# Columns of the per-vertex attributes: position on the average body, position along the arm, coordinates of the
# pattern, and distance (meters) from the edge of the top and of the bottom (negative: uncovered).
QX, QY, QZ, ARM, U, V, COVER_TOP, COVER_BOTTOM = range(8)


def compiled(function):
    """numba's njit around the bare function: the compiler cannot see through a run-time type checker."""
    return njit(cache=True)(inspect.unwrap(function))


@compiled
def skin(rest, bones, weights, matrices):
    """Linear blend skinning: rest [n, 3], bones and weights [n, 4], matrices [frames, bones, 3, 4]."""
    out = np.empty((matrices.shape[0], rest.shape[0], 3), np.float32)
    for f in range(matrices.shape[0]):
        for i in range(rest.shape[0]):
            x, y, z = rest[i, 0], rest[i, 1], rest[i, 2]
            px, py, pz = np.float32(0), np.float32(0), np.float32(0)
            for k in range(4):
                w = weights[i, k]
                if w == 0:
                    break
                m = matrices[f, bones[i, k]]
                px += w * (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3])
                py += w * (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3])
                pz += w * (m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3])
            out[f, i, 0], out[f, i, 1], out[f, i, 2] = px, py, pz
    return out


@compiled
def vertex_normals(points, triangles):
    """Unit vertex normals [n, 3], weighted by triangle area."""
    out = np.zeros_like(points)
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ux, uy, uz = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
        vx, vy, vz = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for i in (a, b, c):
            out[i, 0] += nx
            out[i, 1] += ny
            out[i, 2] += nz
    for i in range(points.shape[0]):
        size = math.sqrt(out[i, 0] ** 2 + out[i, 1] ** 2 + out[i, 2] ** 2) + 1e-20
        out[i] /= np.float32(size)
    return out


@compiled
def project(points, view, lens):
    """Pixel x, y and 1 / depth (0 behind the camera) of points [n, 3].

    `view` [3, 4]: world -> right, down, ahead. `lens`: focal length, cx, cy in pixels.
    """
    out = np.empty_like(points)
    for i in range(points.shape[0]):
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        depth = view[2, 0] * x + view[2, 1] * y + view[2, 2] * z + view[2, 3]
        right = view[0, 0] * x + view[0, 1] * y + view[0, 2] * z + view[0, 3]
        down = view[1, 0] * x + view[1, 1] * y + view[1, 2] * z + view[1, 3]
        inverse = np.float32(1) / depth if depth > 0.05 else np.float32(0)
        out[i, 0] = lens[0] * inverse * right + lens[1]
        out[i, 1] = lens[0] * inverse * down + lens[2]
        out[i, 2] = inverse
    return out


@compiled
def rasterize(screen, triangles, material, edge_distance, inverse_depth, triangle_index, barycentric):
    """Writes 1 / depth, index (-1: none) and barycentric weights of the nearest triangle for every sample.

    Reads `screen` [n, 3] from `project`, triangles [m, 3], material [m] and edge_distance [n]; writes inverse_depth
    [h, w], triangle_index [h, w] and barycentric [h, w, 2] (of corners 1 and 2). Samples whose interpolated
    `edge_distance` is negative lie beyond the garment's edge and are left out.
    """
    height, width = inverse_depth.shape
    inverse_depth[:] = 0
    triangle_index[:] = -1
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        wa, wb, wc = screen[a, 2], screen[b, 2], screen[c, 2]
        if wa == 0 or wb == 0 or wc == 0:
            continue
        x0, y0 = screen[a, 0], screen[a, 1]
        x1, y1 = screen[b, 0] - x0, screen[b, 1] - y0
        x2, y2 = screen[c, 0] - x0, screen[c, 1] - y0
        area = x1 * y2 - x2 * y1
        if abs(area) < 1e-6 or (area > 0 and (material[t] == SKIN or material[t] == EYE)):
            continue  # degenerate, or back-facing and of a closed surface (screen y points down)
        left = max(0, int(math.ceil(x0 + min(0.0, x1, x2) - 0.5)))
        right = min(width - 1, int(math.floor(x0 + max(0.0, x1, x2) - 0.5)))
        top = max(0, int(math.ceil(y0 + min(0.0, y1, y2) - 0.5)))
        bottom = min(height - 1, int(math.floor(y0 + max(0.0, y1, y2) - 0.5)))
        if left > right or top > bottom:
            continue
        inverse = np.float32(1) / area
        mixed = edge_distance[a] < 0 or edge_distance[b] < 0 or edge_distance[c] < 0
        for y in range(top, bottom + 1):
            py = np.float32(y + 0.5) - y0
            for x in range(left, right + 1):
                px = np.float32(x + 0.5) - x0
                b1 = (px * y2 - x2 * py) * inverse
                b2 = (x1 * py - px * y1) * inverse
                b0 = np.float32(1) - b1 - b2
                if b0 < 0 or b1 < 0 or b2 < 0:
                    continue
                w = b0 * wa + b1 * wb + b2 * wc
                if w <= inverse_depth[y, x]:
                    continue
                b1 *= wb / w
                b2 *= wc / w
                if (
                    mixed
                    and edge_distance[a] * (np.float32(1) - b1 - b2) + edge_distance[b] * b1 + edge_distance[c] * b2 < 0
                ):
                    continue
                inverse_depth[y, x] = w
                triangle_index[y, x] = t
                barycentric[y, x, 0] = b1
                barycentric[y, x, 1] = b2


@compiled
def material_color(materials, chest_print, kind, q, u, v, arm):
    """Color r, g, b of a garment. Rows of `materials`: first color, second color, pattern, frequency, phase."""
    row = materials[kind]
    pattern, frequency, phase = int(row[6]), row[7], row[8]
    second = 0.0
    if pattern == STRIPES:
        second = 1.0 if (v * frequency + phase) % 1.0 < 0.5 else 0.0
    elif pattern == VERTICAL_STRIPES:
        second = 1.0 if (u * frequency + phase) % 1.0 < 0.4 else 0.0
    elif pattern == CHECKS:
        second = 0.5 * ((u * frequency + phase) % 1.0 < 0.5) + 0.5 * ((v * frequency + phase) % 1.0 < 0.5)
    elif pattern == BAND:
        second = 1.0 if abs(v - 0.5 - 0.08 * phase) < 0.4 / frequency else 0.0
    elif pattern == RAGLAN:
        second = 1.0 if arm > 0.12 else 0.0
    elif pattern == DOTS:
        du, dv = (u * frequency) % 1.0 - 0.5, (v * frequency) % 1.0 - 0.5
        second = 1.0 if du * du + dv * dv < 0.1 else 0.0
    elif pattern == HALVES:
        second = 1.0 if q[0] > 0 else 0.0
    elif pattern == GRADIENT:
        second = min(max(0.5 + (v - 0.4 + 0.3 * (kind == BOTTOM)) * 2.5, 0.0), 1.0)
    elif pattern == SIDE_STRIPE:
        axis = 0.117 + 0.079 * min(max((0.157 - q[2]) / 0.894, 0.0), 1.0)
        second = 1.0 if abs(q[0]) > axis + 0.045 and abs(q[1] + 0.01) < 0.05 else 0.0
    r = row[0] + (row[3] - row[0]) * second
    g = row[1] + (row[4] - row[1]) * second
    b = row[2] + (row[5] - row[2]) * second
    if pattern == PRINT and q[1] < -0.06 and abs(q[0]) < 0.12 and arm < 0.1 and 0.36 < q[2] < 0.6:
        size = chest_print.shape[0]
        i, j = int((0.6 - q[2]) / 0.24 * (size - 1)), int((q[0] + 0.12) / 0.24 * (size - 1))
        if chest_print[i, j, 3] > 0.5:
            r, g, b = chest_print[i, j, 0], chest_print[i, j, 1], chest_print[i, j, 2]
    return r, g, b


@compiled
def face(materials, face_colors, q):
    """Skin color r, g, b with lips, brows, lids and beard at their positions on the average body.

    Rows of `face_colors`: skin, hair, iris, (beard, brow width, lip strength).
    """
    r, g, b = face_colors[0, 0], face_colors[0, 1], face_colors[0, 2]
    x, y, z = abs(q[0]), q[1], q[2]
    if z < 0.78 or y > -0.04:
        return r, g, b
    beard = face_colors[3, 0]
    if beard > 0 and y < -0.045 and z < 0.853 - 0.06 * max(0.0, 0.05 - x) * 10 + 0.35 * max(0.0, x - 0.045):
        r, g, b = (
            r + (face_colors[1, 0] - r) * beard,
            g + (face_colors[1, 1] - g) * beard,
            b + (face_colors[1, 2] - b) * beard,
        )
    if y > -0.1:
        return r, g, b
    mouth = (x / 0.027) ** 2 + ((z - 0.833) / 0.0105) ** 2
    if mouth < 1:
        s = face_colors[3, 2]
        dark = 0.55 if abs(z - 0.8335) < 0.0022 else 1.0
        r, g, b = r * (1 - 0.12 * s) * dark, g * (1 - 0.5 * s) * dark, b * (1 - 0.45 * s) * dark
    brow = 0.921 - 0.9 * (x - 0.034) ** 2 * 10
    lid = 0.906 - 8 * (x - 0.032) ** 2
    if (0.012 < x < 0.053 and abs(z - brow) < face_colors[3, 1]) or (0.014 < x < 0.05 and abs(z - lid) < 0.0025):
        r, g, b = face_colors[1, 0] * 0.7, face_colors[1, 1] * 0.7, face_colors[1, 2] * 0.7
    return r, g, b


@compiled
def shade(
    triangle_index,
    barycentric,
    triangles,
    material,
    normals,
    points,
    attributes,
    materials,
    chest_print,
    face_colors,
    light,
    eye,
    samples,
    frame,
    mask,
):
    """Blends the person over `frame` [h, w, 3] (0..1, in place) and writes their share of each pixel to `mask`.

    `samples`: samples per pixel along each axis. `light`: sun direction, sun, sky and ground color.
    """
    height, width = mask.shape
    q = np.empty(3, np.float32)
    values = np.empty(8, np.float32)
    share = 1.0 / (samples * samples)
    for y in range(height):
        for x in range(width):
            sr, sg, sb, covered = 0.0, 0.0, 0.0, 0.0
            for sub in range(samples * samples):
                sy, sx = y * samples + sub // samples, x * samples + sub % samples
                t = triangle_index[sy, sx]
                if t < 0:
                    continue
                i0, i1, i2 = triangles[t, 0], triangles[t, 1], triangles[t, 2]
                b1, b2 = barycentric[sy, sx, 0], barycentric[sy, sx, 1]
                b0 = np.float32(1) - b1 - b2
                for k in range(8):
                    values[k] = b0 * attributes[i0, k] + b1 * attributes[i1, k] + b2 * attributes[i2, k]
                q[0], q[1], q[2] = values[QX], values[QY], values[QZ]
                nx = b0 * normals[i0, 0] + b1 * normals[i1, 0] + b2 * normals[i2, 0]
                ny = b0 * normals[i0, 1] + b1 * normals[i1, 1] + b2 * normals[i2, 1]
                nz = b0 * normals[i0, 2] + b1 * normals[i1, 2] + b2 * normals[i2, 2]
                vx, vy, vz = eye[0] - points[i0, 0], eye[1] - points[i0, 1], eye[2] - points[i0, 2]
                size = 1.0 / math.sqrt(vx * vx + vy * vy + vz * vz)
                vx, vy, vz = vx * size, vy * size, vz * size
                kind = material[t]
                if kind == SKIN and values[COVER_TOP] > 0:  # skin that penetrates cloth takes its color
                    kind = TOP
                elif kind == SKIN and values[COVER_BOTTOM] > 0:
                    kind = BOTTOM
                gloss = 0.0
                if kind == SKIN:
                    r, g, b = face(materials, face_colors, q)
                    gloss = 0.06
                elif kind == TOP or kind == BOTTOM:
                    r, g, b = material_color(materials, chest_print, kind, q, values[U], values[V], values[ARM])
                    # Folds: waves across the cloth tilt the normal.
                    wave = math.sin(37 * q[0] + 29 * q[2] + 4 * math.sin(13 * q[2] + 9 * q[1]))
                    wave += math.sin(17 * q[0] - 61 * q[2] + 11 * q[1] + 3 * math.sin(19 * q[0]))
                    nz += 0.06 * wave
                    nx += 0.04 * wave
                elif kind == SHOE:
                    s = 3 if q[2] < -0.797 else 0
                    r, g, b = materials[SHOE, s], materials[SHOE, s + 1], materials[SHOE, s + 2]
                    gloss = 0.12
                elif kind == HAIR:
                    lock = 0.88 + 0.12 * math.sin(260 * q[0] + 60 * q[1]) * math.sin(90 * q[0] + 130 * q[1])
                    r, g, b = materials[HAIR, 0] * lock, materials[HAIR, 1] * lock, materials[HAIR, 2] * lock
                    gloss = materials[HAIR, 3]
                else:
                    dx, dz = abs(q[0]) - 0.0315, q[2] - 0.897
                    d = dx * dx + dz * dz
                    if d < 0.0000065:
                        r, g, b = 0.03, 0.03, 0.03
                    elif d < 0.00004:
                        r, g, b = face_colors[2, 0], face_colors[2, 1], face_colors[2, 2]
                    else:
                        r, g, b = 0.92, 0.92, 0.9
                    gloss = 0.2
                size = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz + 1e-12)
                inside = 1.0
                toward = nx * vx + ny * vy + nz * vz
                if toward < 0 and (kind == HAIR or kind == TOP or kind == BOTTOM) and toward * size < -0.15:
                    size, inside = -size, 0.6  # the inner side of a sleeve, a skirt or long hair
                nx, ny, nz = nx * size, ny * size, nz * size
                sun = (nx * light[0, 0] + ny * light[0, 1] + nz * light[0, 2] + 0.15) / 1.15
                sun = max(sun, 0.0) * inside
                up = (0.5 + 0.5 * nz) * inside
                hx, hy, hz = light[0, 0] + vx, light[0, 1] + vy, light[0, 2] + vz
                size = 1.0 / math.sqrt(hx * hx + hy * hy + hz * hz + 1e-12)
                shine = gloss * max((nx * hx + ny * hy + nz * hz) * size, 0.0) ** 20
                sr += r * (sun * light[1, 0] + up * light[2, 0] + (inside - up) * light[3, 0]) + shine
                sg += g * (sun * light[1, 1] + up * light[2, 1] + (inside - up) * light[3, 1]) + shine
                sb += b * (sun * light[1, 2] + up * light[2, 2] + (inside - up) * light[3, 2]) + shine
                covered += 1.0
            if covered > 0:
                rest = 1.0 - covered * share
                frame[y, x, 0] = frame[y, x, 0] * rest + sr * share
                frame[y, x, 1] = frame[y, x, 1] * rest + sg * share
                frame[y, x, 2] = frame[y, x, 2] * rest + sb * share
            mask[y, x] = covered * share


@compiled
def cast_shadow(frame, view, lens, blobs):
    """Darkens the floor z = 0 of `frame` [h, w, 3] under soft round blobs (x, y, radius, strength)."""
    ex = -(view[0, 0] * view[0, 3] + view[1, 0] * view[1, 3] + view[2, 0] * view[2, 3])
    ey = -(view[0, 1] * view[0, 3] + view[1, 1] * view[1, 3] + view[2, 1] * view[2, 3])
    ez = -(view[0, 2] * view[0, 3] + view[1, 2] * view[1, 3] + view[2, 2] * view[2, 3])
    for y in range(frame.shape[0]):
        for x in range(frame.shape[1]):
            dx, dy = (x + 0.5 - lens[1]) / lens[0], (y + 0.5 - lens[2]) / lens[0]
            rz = dx * view[0, 2] + dy * view[1, 2] + view[2, 2]
            if rz > -1e-3:
                continue
            far = -ez / rz
            gx = ex + far * (dx * view[0, 0] + dy * view[1, 0] + view[2, 0])
            gy = ey + far * (dx * view[0, 1] + dy * view[1, 1] + view[2, 1])
            keep = 1.0
            for i in range(blobs.shape[0]):
                d = ((gx - blobs[i, 0]) ** 2 + (gy - blobs[i, 1]) ** 2) / blobs[i, 2] ** 2
                if d < 9:
                    keep *= 1 - blobs[i, 3] * math.exp(-d)
            frame[y, x, 0] *= keep
            frame[y, x, 1] *= keep
            frame[y, x, 2] *= keep
