"""G as a network of images: what it makes of z, decoded where it makes latents."""

from torch import Tensor, nn

from distgan.gan.outputs import images_of


class ImageGenerator(nn.Module):
    """z [N, z_dim] and labels -> images [N, C, H, W], about in [-1, 1]: the images of G's output, through `decoder`.

    `decoder` maps G's samples [N, c, h, w] to images: an autoencoder's decoder, or `nn.Identity` for pixels. It is in
    the mode of G, training or evaluation.
    """

    def __init__(self, G: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.G = G
        self.decoder = decoder
        self.train(G.training)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.decoder(images_of(self.G(z, labels)))
