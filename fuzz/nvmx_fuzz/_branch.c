/* A branch callback for instrumented Python that costs one C call and one byte.
 *
 * atheris's own callback goes through a C++ argument-conversion layer at every branch. This one uses
 * CPython's METH_O convention, which the interpreter calls directly, and adds one to a counter in a
 * caller-supplied buffer. libFuzzer reads and clears the same bytes (see feedback.py).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

static Py_buffer view;
static unsigned char *counters;
static size_t counter_count;

static PyObject *
bind(PyObject *module, PyObject *buffer)
{
    Py_buffer fresh;
    (void)module;
    if (PyObject_GetBuffer(buffer, &fresh, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    if (counters != NULL) {
        PyBuffer_Release(&view);
    }
    /* Holding the view keeps the buffer alive and a bytearray from being resized. */
    view = fresh;
    counters = (unsigned char *)view.buf;
    counter_count = (size_t)view.len;
    Py_RETURN_NONE;
}

static PyObject *
_trace_branch(PyObject *module, PyObject *index)
{
    long i = PyLong_AsLong(index);
    (void)module;
    if (i == -1 && PyErr_Occurred()) {
        return NULL;
    }
    /* A negative index becomes huge and is ignored, like one past the end. */
    if ((size_t)i < counter_count && counters[i] != 255) {
        counters[i]++;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"bind", bind, METH_O, "bind(buffer): count branches in this writable buffer."},
    {"_trace_branch", _trace_branch, METH_O, "_trace_branch(index): add one, up to 255."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_branch", "Native branch callback (see feedback.py).", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__branch(void)
{
    return PyModule_Create(&definition);
}
