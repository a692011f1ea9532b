"""What can be wrong with a data set: one table of all kinds of findings, for every check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

NUM_EXAMPLES = 3
MAX_DESCRIBED = 20 * NUM_EXAMPLES  # cases of which those are chosen that differ
ERROR, WARNING, FINE = "error", "warning", ""
_INFLECTIONS = (
    ("{s}", "", "s"),
    ("{es}", "", "es"),
    ("{are}", "is", "are"),
    ("{have}", "has", "have"),
    ("{seem}", "seems", "seem"),
    ("{reach}", "reaches", "reach"),
)


class Kind(NamedTuple):
    """A kind of finding.

    Args:
        what: Description after the count, with marks for singular and plural.
        fix: What to do about it.
        train: Severity in a training set. An error stops training or lets it learn something wrong
            without notice; a warning changes less, or may be meant.
        val: Severity in a validation set; by default that of a training set.
        most: Whether a warning about more than half of the images or annotations is an error:
            then the data set is not what it is taken for.
    """

    what: str
    fix: str
    train: str = ERROR
    val: str | None = None
    most: bool = False

    def severity(self, role: str, count: int, of: int) -> str:
        """Returns the severity of ``count`` cases among ``of`` in the set of a role."""
        severity = self.train if role == "train" or self.val is None else self.val
        return ERROR if severity and self.most and 2 * count > of else severity


_LEFT_OUT = "correct or remove them"
KINDS: dict[str, Kind] = {
    # The file. Its sentence replaces `what`.
    "json": Kind("file{s} {are} not COCO JSON", "give a JSON file in COCO's format"),
    "byte_order_mark": Kind(
        "JSON file{s} {have} a byte order mark, which Detectron2 does not read",
        "save as UTF-8 without BOM",
    ),
    "nan_literal": Kind(
        "number{s} {are} written as NaN or Infinity, which is not JSON", _LEFT_OUT, WARNING
    ),
    # Images of the JSON.
    "image_entry": Kind("image{s} {have} no file_name or no id", _LEFT_OUT),
    "image_id_type": Kind(
        "image id{s} {are} of another type than the others, or neither integer nor text",
        "number the images with integers",
    ),
    "image_id_text": Kind(
        "image id{s} {are} text: Detectron2 takes it, other readers of COCO's format may not",
        "number the images with integers if another tool complains",
        WARNING,
    ),
    "image_id_double": Kind(
        "image{s} {have} the id of another", "give each image its own id: only the last is used"
    ),
    "image_size_missing": Kind(
        "image{s} {have} no width and height", "add both, in pixels; start_project fills them in"
    ),
    # Annotations of the JSON.
    "annotation_image": Kind(
        "annotation{s} {are} of images that the file does not list",
        "they are not used: add the images or remove them",
        WARNING,
        most=True,
    ),
    "annotation_image_id": Kind(
        "annotation{s} {have} no image_id, or one that cannot be an id", _LEFT_OUT
    ),
    "annotation_category": Kind(
        "annotation{s} {are} of classes that the file does not list",
        "add the class, or remove them",
    ),
    "annotation_id_double": Kind(
        "annotation{s} {have} the id of another", "number them anew; start_project does"
    ),
    "annotation_id_missing": Kind("annotation{s} {have} no id", "number them; start_project does"),
    "annotation_id_zero": Kind(
        "annotation{s} {have} the id 0, which pycocotools takes for no match",
        "number them from 1; start_project does",
        WARNING,
        ERROR,
    ),
    "annotation_id_type": Kind(
        "annotation id{s} {are} not an integer", "number them; start_project does", WARNING, ERROR
    ),
    "box_values": Kind("box{es} {are} not four finite numbers", "give x, y, width, height"),
    "box_negative": Kind(
        "box{es} {have} a negative width or height",
        "give x, y, width, height: Detectron2 trains on the mirrored box, no detection matches it",
    ),
    "box_zero": Kind(
        "box{es} {have} no area",
        "remove them: they are not trained on, and count as missed in validation",
        WARNING,
        most=True,
    ),
    "box_outside": Kind(
        "box{es} {are} outside of the image",
        "remove them: they are not trained on, and count as missed in validation",
        WARNING,
        most=True,
    ),
    "box_clip": Kind(
        "box{es} {are} partly outside of the image",
        "clip them: training does, but validation uses the whole box",
        WARNING,
        most=True,
    ),
    "box_double": Kind(
        "annotation{s} {have} the class and box of another", "remove the copies", WARNING
    ),
    "box_corners": Kind(
        "box{es} {seem} to be x1, y1, x2, y2, not COCO's x, y, width, height", "convert them"
    ),
    "box_corners_some": Kind(
        "box{es} {reach} out of the image, but would fit as x1, y1, x2, y2",
        "see whether some sources of the data set write corners instead of x, y, width, height",
        WARNING,
    ),
    "box_centers": Kind(
        "box{es} {seem} to be center x, center y, width, height, not COCO's x, y, width, height",
        "convert them",
    ),
    "box_fractions": Kind(
        "box{es} {have} values up to 1, as if they were fractions of the image",
        "give x, y, width and height in pixels",
        WARNING,
        most=True,
    ),
    "box_tiny": Kind(
        "box{es} {have} a side of less than half a pixel",
        "see whether their unit is the pixel",
        WARNING,
        most=True,
    ),
    "crowd_only": Kind(
        "annotation{s} {are} iscrowd regions, which are not objects, and nothing else is there",
        "set iscrowd to 0 where single objects are meant",
    ),
    "crowd_value": Kind("annotation{s} {have} an iscrowd other than 0 or 1", "set 0 or 1"),
    "crowd_missing": Kind(
        "annotation{s} {have} no iscrowd, which pycocotools needs", "add it: 0", FINE, ERROR
    ),
    "area_missing": Kind(
        "annotation{s} {have} no area, which pycocotools needs",
        "add it, for example width x height; start_project does",
        FINE,
        ERROR,
    ),
    "area_value": Kind(
        "annotation{s} {have} an area that is not a number, negative or over 1e10: pycocotools "
        "stops or leaves them out",
        "set it, for example to width x height",
        FINE,
        ERROR,
    ),
    "area_odd": Kind(
        "annotation{s} {have} an area that does not go with the box: small, medium and large are "
        "told apart by it",
        "set it, for example to width x height",
        FINE,
        WARNING,
    ),
    "ignore": Kind(
        "annotation{s} {have} the key ignore, which Detectron2 refuses", "use iscrowd instead"
    ),
    "segmentation": Kind(
        "segmentation{s} {are} neither polygons nor a run-length code",
        "remove them, boxes do not need them",
    ),
    "segmentation_short": Kind(
        "annotation{s} {have} only polygons of less than three points: Detectron2 leaves them out",
        "remove the key segmentation, boxes do not need it",
        WARNING,
        most=True,
    ),
    "keypoints": Kind(
        "annotation{s} {have} keypoints that are not a list of numbers",
        "remove them, boxes do not need them",
    ),
    # Categories.
    "category_entry": Kind("category list{s} cannot be used", "give each an integer id and a name"),
    "category_name_double": Kind(
        "class name{s} {are} used by several ids", "rename or unite them", WARNING
    ),
    "category_empty": Kind(
        "class{es} {have} no box", "not to be learned; in validation without an AP", WARNING
    ),
    # Image files.
    "image_missing": Kind("image{s} {are} missing", "correct the folder, or remove them"),
    "image_no_file": Kind("image{s} {are} a folder or another thing than a file", _LEFT_OUT),
    "image_forbidden": Kind("image{s} may not be read", "change their permissions"),
    "image_empty": Kind("image file{s} {are} empty", "download or copy them again"),
    "image_html": Kind(
        "image file{s} {are} a web page or text",
        "download them again: the server refused",
    ),
    "image_lfs": Kind("image{s} {have} a pointer of Git LFS instead of pixels", "run git lfs pull"),
    "image_truncated": Kind("image{s} {are} truncated", "download or copy them again"),
    "image_unreadable": Kind("image{s} {are} unreadable", "replace them: Pillow cannot open them"),
    "image_size": Kind(
        "image{s} {are} of another size", "correct width and height, or restore the files"
    ),
    "image_bomb": Kind(
        "image{s} {have} more pixels than Pillow reads", "cut them into tiles, or make them smaller"
    ),
    "image_huge": Kind(
        "image{s} {have} more than 89 million pixels", "cut them into tiles for training", WARNING
    ),
    "image_small": Kind(
        "image{s} {have} a side of less than 8 pixels", "see whether they are images", WARNING
    ),
    "image_long": Kind(
        "image{s} {are} over 500 times as long as wide: resizing leaves nothing of a side",
        "cut or remove them",
    ),
    "image_gray": Kind("image{s} {are} gray", "read as three equal channels", WARNING),
    "image_deep": Kind(
        "image{s} {have} more than 8 bits a channel",
        "convert them to 8 bits if you want to choose the range",
        WARNING,
    ),
    "image_alpha": Kind(
        "image{s} {have} transparency, which is dropped: what it hides is seen",
        "put them on a background",
        WARNING,
    ),
    "image_cmyk": Kind(
        "image{s} {are} in CMYK, converted without a color profile", "convert them to RGB", WARNING
    ),
    "image_palette": Kind("image{s} {have} a palette", "read as RGB", WARNING),
    "image_mode": Kind("image{s} {have} an unusual color mode", "read as RGB", WARNING),
    "image_turned": Kind(
        "image{s} {are} turned by EXIF data when read",
        "make sure that boxes were drawn on the turned image",
        WARNING,
    ),
    "file_double": Kind("file{s} {are} named by several images", "remove the copies", WARNING),
    "image_double": Kind(
        "image{s} {have} the content of another under another name", "remove the copies", WARNING
    ),
    # Two sets.
    "shared": Kind(
        "image{s} {are} also in train",
        "AP will look better than it is: remove them from one",
        WARNING,
    ),
    "categories_differ": Kind(
        "difference{s} between the classes of the sets", "give both the same categories"
    ),
    "loading": Kind("data set{s} cannot be loaded", "correct the annotations"),
}


@dataclass(frozen=True)
class Example:
    """A case of a finding.

    Args:
        text: The case for people.
        file: The image's file name.
        image_id: Its id.
        annotation_id: The annotation's id.
        value: The value that is wrong.
    """

    text: str
    file: str | None = None
    image_id: Any = None
    annotation_id: Any = None
    value: Any = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Finding:
    """A problem: its kind, count, a few examples, and what to do or what was done.

    Args:
        code: A key of ``KINDS``; "" for a change that is none of them.
        severity: "error" or "warning".
        count: Number of cases.
        examples: The first few.
        action: What to do about it, or what was done.
        what: A sentence with everything; or, without a code, the description after the count.
    """

    code: str
    severity: str
    count: int
    examples: tuple[Example, ...] = ()
    action: str = ""
    what: str = ""

    def __str__(self) -> str:
        examples = f", e.g. {', '.join(map(str, self.examples))}" if self.examples else ""
        action = f": {self.action}" if self.action else ""
        return printable(f"{self.phrase}{examples}{action}")

    @property
    def phrase(self) -> str:
        """The count and the description, with the right inflections; or a sentence of its own."""
        if self.what and self.code:
            return self.what
        return f"{self.count} {inflect(self.what or KINDS[self.code].what, self.count)}"


def printable(text: str) -> str:
    """Returns the text on one line, with escapes for what a console cannot show."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def inflect(text: str, count: int) -> str:
    """Fills in the marks: "image{s} {are}" is "image is" for one, else "images are"."""
    for mark, singular, plural in _INFLECTIONS:
        text = text.replace(mark, singular if count == 1 else plural)
    return text


@dataclass
class Report:
    """The findings about one data set.

    Args:
        place: The file, folder or name of the data set.
        role: "train" or "val": some faults matter in one of them only.
        counts: Numbers of images, annotations and classes, by name.
        findings: The findings so far.
    """

    place: str
    role: str = "train"
    counts: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(
        self,
        code: str,
        cases: Sequence[Any],
        describe: Callable[[Any], Example] = Example,
        *,
        of: int = 0,
        fix: str = "",
    ) -> None:
        """Adds a finding if there are cases and the kind matters in this role.

        Args:
            code: A key of :data:`KINDS`.
            cases: What is wrong: a list or an array.
            describe: Makes an example from a case; only called for the first ones.
            of: Number of things that could have been wrong, for kinds with ``most``.
            fix: Replaces that of the kind.
        """
        kind = KINDS[code]
        severity = kind.severity(self.role, len(cases), of or len(cases) * 2)
        if len(cases) and severity:
            examples = first_examples(describe(case) for case in cases[:MAX_DESCRIBED])
            self.findings.append(Finding(code, severity, len(cases), examples, fix or kind.fix))

    def say(self, code: str, sentence: str, count: int = 1) -> None:
        """Adds a finding that has a sentence of its own."""
        severity = KINDS[code].severity(self.role, count, 2 * count)
        if severity:
            self.findings.append(Finding(code, severity, count, what=sentence))

    @property
    def errors(self) -> list[Finding]:
        """The findings that stop training."""
        return [finding for finding in self.findings if finding.severity == ERROR]

    @property
    def warnings(self) -> list[Finding]:
        """The other findings."""
        return [finding for finding in self.findings if finding.severity == WARNING]


def first_examples(cases: Iterable[Example]) -> tuple[Example, ...]:
    """Returns the first few cases with different texts."""
    found: dict[str, Example] = {}
    for case in cases:
        found.setdefault(str(case), case)
        if len(found) == NUM_EXAMPLES:
            break
    return tuple(found.values())
