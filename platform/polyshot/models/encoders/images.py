"""Encoders of images: a small convolutional network, or any model of torchvision's, with weights from a file if wanted.

They take bytes out of a row's numbers, normalise them, and while training shift and mirror them, a batch at a time.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyshot.data.inputs import ImagePlace, InputLayout
from polyshot.errors import DataError, Problem, RunError, StudyError, did_you_mean
from polyshot.models.encoders.media import MediaEncoder
from polyshot.study.model import ConvNet, TorchvisionModel

_SMALL = 64  # images up to so many pixels are small for a ResNet that was made for 224


class ImageEncoder(MediaEncoder):
    """The vector of each column of images, beside each other, by one network [B, C, S, S] → [B, H]."""

    rows_at_once = 256

    def __init__(self, inputs: InputLayout, settings: ConvNet | TorchvisionModel, folder: Path = Path()):
        """
        Raises:
            DataError: when none of the columns is an image, or the columns differ in channels or size.
            RunError: when the file of weights cannot be read, or is another model's.
            StudyError: when there is no such model, or it does not take such images.
        """
        if not inputs.images:
            raise DataError(
                f"model.encoder: '{settings.kind}' reads columns of images and there is none; say which in data.columns"
            )
        channels, size = _one_shape(inputs.images)
        network, width = (
            conv_net(settings, channels, size)
            if isinstance(settings, ConvNet)
            else torchvision_model(settings, channels, size, folder)
        )
        super().__init__(inputs, width * len(inputs.images), settings.learning_rate_factor)
        self.network = network

    def computed(self, rows: Tensor) -> Tensor:
        parts = [self.network(self._prepared(pixels, place)) for pixels, place in self.inputs.images_of(rows)]
        vectors = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return vectors.unsqueeze(1).expand(-1, self.places, -1)

    def _prepared(self, pixels: Tensor, place: ImagePlace) -> Tensor:
        """Bytes [B, C, S, S] → numbers of mean 0 and variance 1 in the training rows, augmented while training."""
        dtype = next(self.network.parameters()).dtype
        means, deviations = (
            torch.tensor(values, dtype=dtype, device=pixels.device).view(1, -1, 1, 1)
            for values in (place.means, place.deviations)
        )
        images = (pixels.to(dtype) / 255 - means) / deviations
        return augmented(images, place.flip, place.shift) if self.training else images

    @property
    def layers(self) -> list[nn.Module]:
        return [child for child in self.network.children() if any(True for _ in child.parameters())]


def augmented(images: Tensor, flip: bool, shift: int) -> Tensor:
    """Half of the images [B, C, S, S] mirrored, and each shifted by up to `shift` pixels, with zeros from outside."""
    if flip:
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
    if shift:
        size = images.shape[2]
        padded = F.pad(images, [shift] * 4)
        down, right = torch.randint(2 * shift + 1, (2, len(images), 1), device=images.device)
        along = torch.arange(size, device=images.device)
        rows = (down + along)[:, None, :, None]  # [B, 1, S, 1]
        columns = (right + along)[:, None, None, :]
        which = torch.arange(len(images), device=images.device)[:, None, None, None]
        channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        images = padded[which, channels, rows, columns]
    return images


def _one_shape(places: tuple[ImagePlace, ...]) -> tuple[int, int]:
    shapes = {(place.channels, place.size) for place in places}
    if len(shapes) > 1:
        raise DataError(
            f"data.images: the columns {', '.join(place.column for place in places)} differ in channels or size, and "
            "one network reads them; make them alike"
        )
    return shapes.pop()


def conv_net(settings: ConvNet, channels: int, size: int) -> tuple[nn.Module, int]:
    """Blocks of convolution → group normalisation → ReLU → halving, each twice as wide, and the mean over what is left.

    Raises:
        StudyError: when the images are too small for so many halvings.
    """
    if size < 2**settings.layers:
        message = f"{settings.layers} halvings need images of {2**settings.layers} pixels or more, got {size}"
        raise StudyError([Problem("model.encoder.layers", f"{message}; lower it or raise data.images")])
    network = nn.Sequential()
    width = channels
    for layer in range(settings.layers):
        before, width = width, settings.width * 2**layer
        network.append(
            nn.Sequential(
                nn.Conv2d(before, width, 3, padding=1, bias=False), nn.GroupNorm(1, width), nn.ReLU(), nn.MaxPool2d(2)
            )
        )
    network.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    return network, width


def torchvision_model(
    settings: TorchvisionModel, channels: int, size: int, folder: Path = Path()
) -> tuple[nn.Module, int]:
    """A model of torchvision's without its last layer, and how many numbers it gives for an image.

    A ResNet for small images begins with a 3×3 convolution that halves nothing, as in He et al. (CVPR 2016) for CIFAR.

    Raises:
        StudyError: when there is no such model, or it does not take such images.
        RunError: when the file of weights cannot be read, or is another model's.
    """
    import torchvision.models as models

    names = models.list_models(module=models)
    if settings.model not in names:
        message = f"torchvision has no model '{settings.model}'.{did_you_mean(settings.model, names)}"
        raise StudyError([Problem("model.encoder.model", message)])
    network = models.get_model(settings.model, weights=None)
    small = size <= _SMALL if settings.small_images is None else settings.small_images
    if isinstance(network, models.ResNet):
        stem = network.conv1
        if small:
            network.conv1 = nn.Conv2d(channels, stem.out_channels, 3, padding=1, bias=False)
            network.maxpool = nn.Identity()
        elif channels != stem.in_channels:
            network.conv1 = nn.Conv2d(channels, stem.out_channels, 7, stride=2, padding=3, bias=False)
    elif settings.small_images:
        message = f"'{settings.model}' is no ResNet, and only these can be adapted; resize images (data.images) instead"
        raise StudyError([Problem("model.encoder.small_images", message)])
    if settings.weights is not None:
        _load(network, folder / Path(settings.weights).expanduser())
    _without_head(network)
    try:
        with torch.no_grad():
            outputs = network.eval()(torch.zeros(1, channels, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        what = str(error).partition("\n")[0]
        message = (
            f"'{settings.model}' does not take images of {channels} × {size} × {size} ({what}); change data.images"
        )
        raise StudyError([Problem("model.encoder.model", message)]) from None
    return network.train(), int(outputs.shape[1])


_HEADS = ("fc", "classifier", "heads", "head")  # what torchvision calls the last part


def _without_head(network: nn.Module) -> None:
    for name in _HEADS:
        if isinstance(getattr(network, name, None), nn.Module):
            setattr(network, name, nn.Identity())
            return


def _load(network: nn.Module, path: Path) -> None:
    """Weights of a file, but for those of the last layer, which the tasks' heads are in the place of."""
    place = "model.encoder.weights"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{place}: {path} is not there; correct the path") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        what = str(error).partition("\n")[0]
        raise RunError(
            f"{place}: {path} holds no weights that can be read safely ({what}); save a state_dict"
        ) from None
    wanted = {name: value for name, value in network.state_dict().items() if name.partition(".")[0] not in _HEADS}
    if not isinstance(found, dict) or not wanted.keys() <= found.keys():
        missing = sorted(wanted.keys() - (found.keys() if isinstance(found, dict) else set()))
        raise RunError(
            f"{place}: {path} is another model's ('{missing[0]}' is not in it); name the right file or model"
        )
    wrong = [name for name, value in wanted.items() if found[name].shape != value.shape]
    if wrong:
        raise RunError(
            f"{place}: '{wrong[0]}' is of shape {list(found[wrong[0]].shape)} in {path} and of "
            f"{list(wanted[wrong[0]].shape)} here; set small_images to what the file's model had"
        )
    network.load_state_dict({name: found[name] for name in wanted}, strict=False)
